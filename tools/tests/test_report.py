import base64
import json

CLAIMS = """\
claim,paper,ours,unit,low,high,held
accuracy <b> rises,0.63,0.6512345,%,0.6,,True
error falls,,0.2,,,0.1,False
"""
PICTURE = b"\x89PNG\r\n\x1a\nnot much of a picture"


def make_run(folder):
    (folder / "plots").mkdir(parents=True)
    (folder / "claims.csv").write_text(CLAIMS)
    (folder / "results.json").write_text(json.dumps({"claims": [{"claim": "x"}]}))
    (folder / "plots" / "accuracy_by_epsilon.png").write_bytes(PICTURE)
    return folder


def test_the_page_shows_claims_and_embeds_pictures(tmp_path, tool):
    run = make_run(tmp_path / "label-dp")
    done = tool("report", tmp_path / "reports", run)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "reports" / "index.html").read_text()
    assert "1 of 2 claims held, in 1 package," in page
    assert "What label-dp does." in page
    assert "accuracy &lt;b&gt; rises" in page
    assert "<td class=number>0.63 %</td><td class=number>0.6512 %</td>" in page
    assert "at least 0.6" in page
    assert "at most 0.1" in page
    assert page.count("not held") == 1
    assert base64.b64encode(PICTURE).decode() in page
    assert "accuracy by epsilon" in page


def test_the_page_fetches_nothing(tmp_path, tool):
    tool("report", tmp_path / "reports", make_run(tmp_path / "vmoe"))
    page = (tmp_path / "reports" / "index.html").read_text()
    assert "http" not in page
    assert "<script" not in page
    assert "<link" not in page


def test_a_run_that_did_not_finish_is_shown_and_fails(tmp_path, tool):
    (tmp_path / "vmoe").mkdir()
    done = tool("report", tmp_path / "out", make_run(tmp_path / "label-dp"), tmp_path / "vmoe")
    assert done.returncode == 1
    assert done.stderr == "error: vmoe did not finish\n"
    assert "The run did not finish." in (tmp_path / "out" / "index.html").read_text()


def test_a_missing_run_is_one_line(tmp_path, tool):
    done = tool("report", tmp_path / "out", tmp_path / "none")
    assert done.returncode == 2
    assert done.stderr == f"error: no run folder {tmp_path / 'none'}\n"
    assert not (tmp_path / "out").exists()
