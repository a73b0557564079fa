import pytest


def page(workspace, text, name="vmoe"):
    (workspace / "packages" / name / "README.md").write_text(text)


def test_blocks_run_in_order_in_one_session_and_one_folder(workspace, tool):
    page(
        workspace,
        "```python\nx = 2\nopen('a.txt', 'w').write('a')\n```\n\n"
        "```bash\ntest -f a.txt\necho b > b.txt\n```\n\n"
        "```python\nassert x == 2 and open('b.txt').read() == 'b\\n'\n```\n",
    )
    done = tool("check_readmes", "vmoe")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("packages/vmoe/README.md: 3 blocks ran in ")
    assert not (workspace / "a.txt").exists()


def test_pages_do_not_see_each_other(workspace, tool):
    page(workspace, "```python\nx = 1\nopen('a.txt', 'w').close()\n```\n", "alone")
    text = "```python\nimport os\nassert 'x' not in globals() and os.listdir() == []\n```\n"
    page(workspace, text, "vmoe")
    assert tool("check_readmes", "alone", "vmoe").returncode == 0


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("```python\ny = 1\nraise ValueError('no')\n```", ":5: ValueError: no"),
        ("```python\ny = 1\nx = = 2\n```", ":5: SyntaxError: invalid syntax"),
        ("```python\ndef f():\n    g()\nf()\n```", ":5: NameError: name 'g' is not defined"),
        ("```python\nimport sys\nsys.exit(0)\n```", ":5: SystemExit: 0"),
        ("```bash\nfalse\ntrue\n```", ":4: the shell block ended with 1"),
        ("```bash\nfalse | true\n```", ":4: the shell block ended with 1"),
        ("```sh\necho $unset\n```", ":4: the shell block ended with 1"),
        ("```console\n$ true\n```", ":4: a console block cannot be run"),
        ("<!-- check: skip -->\n```bash\ntrue\n```", ":3: write 'check: skip REASON'"),
        ("<!-- check: ignore it -->\n```bash\ntrue\n```", ":3: write 'check: skip REASON'"),
    ],
)
def test_a_failing_block_is_named_by_file_and_line(workspace, tool, block, message):
    page(workspace, f"# vmoe\n\n{block}\n")
    done = tool("check_readmes", "vmoe")
    assert done.returncode == 1
    assert f"error: packages/vmoe/README.md{message}" in done.stderr


def test_the_output_of_a_failing_block_is_shown(workspace, tool):
    page(workspace, "```bash\necho what went wrong\nexit 3\n```\n")
    done = tool("check_readmes", "vmoe")
    assert "what went wrong" in done.stderr
    assert "ended with 3" in done.stderr


def test_a_skipped_block_is_not_run_and_its_reason_is_printed(workspace, tool):
    page(
        workspace, "<!-- check: skip needs a GPU -->\n\n```bash\nfalse\n```\n\n```bash\ntrue\n```\n"
    )
    done = tool("check_readmes", "vmoe")
    assert done.returncode == 0
    assert "packages/vmoe/README.md:4: skipped, needs a GPU" in done.stdout
    assert "1 blocks ran" in done.stdout


def test_a_comment_that_is_not_immediately_before_a_block_does_nothing(workspace, tool):
    page(workspace, "<!-- check: skip no -->\n\nText.\n\n```bash\nfalse\n```\n")
    assert tool("check_readmes", "vmoe").returncode == 1


def test_a_block_can_be_a_file(workspace, tool):
    text = "<!-- check: file in/config.toml -->\n```toml\nsteps = 3\n```\n\n"
    page(workspace, text + "```bash\ngrep -q 'steps = 3' in/config.toml\n```\n")
    assert tool("check_readmes", "vmoe").returncode == 0


def test_blocks_inside_lists_and_other_languages(workspace, tool):
    text = "1. one\n\n    ```python\n    if True:\n        x = 1\n    ```\n\n```json\n{\n```\n"
    page(workspace, text + "\n````text\n```bash\nfalse\n```\n````\n")
    done = tool("check_readmes", "vmoe")
    assert done.returncode == 0, done.stderr
    assert "1 blocks ran" in done.stdout


def test_every_failing_page_is_shown_in_one_run(workspace, tool):
    page(workspace, "```bash\nfalse\n```\n", "alone")
    page(workspace, "```bash\nfalse\n```\n", "vmoe")
    guide = workspace / "docs/pages/guides/one.md"
    guide.parent.mkdir()
    guide.write_text("```python\n1 / 0\n```\n")
    done = tool("check_readmes")
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    places = [
        "packages/alone/README.md:2",
        "packages/vmoe/README.md:2",
        "docs/pages/guides/one.md:2",
    ]
    assert [line.split(": ")[1] for line in errors] == places


def test_an_unknown_name_is_one_line(tool):
    done = tool("check_readmes", "glam")
    assert done.returncode == 2
    assert done.stderr == (
        "error: no package 'glam'; there are alone, core, label-dp, vmoe, root, docs\n"
    )
