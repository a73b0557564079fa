import ast
import io
import tokenize
from pathlib import Path

import chapbook.core

# docs/pages/decisions/one-core.md says how it came to this. It goes down with the modules; a change
# that needs it higher says there why.
CEILING = 4_233
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
LAYOUT |= {tokenize.ENDMARKER}


def code_lines(text: str) -> int:
    """Counts the lines that hold code: no blank line, no comment, no docstring."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in LAYOUT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Module() | ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                if ast.get_docstring(node, clean=False) is not None:
                    said = node.body[0]
                    lines.difference_update(range(said.lineno, (said.end_lineno or 0) + 1))
    return len(lines)


def test_lines_are_counted_without_blanks_comments_and_docstrings():
    text = '"""Doc\n\nmore."""\n\n# why\nx = [\n    1,  # one\n]\n\n\ndef f():\n    """Doc."""\n'
    assert code_lines(text + '    return """a\nb"""\n') == 6


def test_the_package_stays_below_its_ceiling():
    folder = Path(chapbook.core.__file__).parent
    paths = sorted(folder.rglob("*.py"))
    counts = {str(path.relative_to(folder)): code_lines(path.read_text()) for path in paths}
    assert len(counts) > 5
    assert sum(counts.values()) <= CEILING, counts
