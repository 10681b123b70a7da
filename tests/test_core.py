"Fetching: what happens to files that are missing, corrupt, compressed or interrupted."
import gzip, hashlib

import pytest

from fairness_repair import core

content = b"seven words that everyone agrees upon here"


@pytest.fixture
def mine(tmp_path, monkeypatch):
    "A registry of one file that no network has, an empty cache and an empty data folder."
    row = dict(name="a/b.txt", sha256=hashlib.sha256(content).hexdigest(), bytes=str(len(content)),
               url="http://127.0.0.1:9/b.txt", member="", licence="none")
    monkeypatch.setattr(core, "registry", lambda: {"a/b.txt": row})
    monkeypatch.setenv("FAIRNESS_REPAIR_CACHE", str(tmp_path/"cache"))
    monkeypatch.setenv("FAIRNESS_REPAIR_DATA", str(tmp_path/"data"))
    (tmp_path/"data"/"a").mkdir(parents=True)
    return tmp_path


def test_missing_with_no_network_names_file_address_and_variable(mine):
    with pytest.raises(ValueError) as error: core.fetch("a/b.txt")
    for part in ("a/b.txt", "http://127.0.0.1:9/b.txt", "FAIRNESS_REPAIR_DATA"):
        assert part in str(error.value)
    assert not [p for p in (mine/"cache").rglob("*") if p.is_file()], "nothing half is left behind"


def test_own_folder_comes_first(mine):
    (mine/"data"/"a"/"b.txt").write_bytes(content)
    assert core.fetch("a/b.txt") == mine/"data"/"a"/"b.txt"


def test_gz_counts_as_its_content(mine):
    (mine/"data"/"a"/"b.txt.gz").write_bytes(gzip.compress(content))
    assert core.fetch("a/b.txt").read_bytes() == content
    assert core.fetch("a/b.txt").read_bytes() == content, "the second time from the cache"


@pytest.mark.parametrize("name, damage", [("b.txt", lambda b: b[:-1]),
                                          ("b.txt.gz", lambda b: gzip.compress(b + b"!"))])
def test_corrupt_file_is_refused(mine, name, damage):
    (mine/"data"/"a"/name).write_bytes(damage(content))
    with pytest.raises(ValueError, match="corrupt"): core.fetch("a/b.txt")
    assert not [p for p in (mine/"cache").rglob("*") if p.is_file()]


def test_corrupt_cache_is_refused(mine):
    (mine/"cache"/"files"/"a").mkdir(parents=True)
    (mine/"cache"/"files"/"a"/"b.txt").write_bytes(content[1:])
    with pytest.raises(ValueError, match="corrupt"): core.fetch("a/b.txt")


def test_corrupt_download_is_refused(mine, monkeypatch):
    "A server on this machine hands out other bytes than the registry promises."
    import http.server, threading

    class Liar(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200); self.end_headers(); self.wfile.write(content + b"?")
        def log_message(self, *args): pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Liar)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    row = core.registry()["a/b.txt"] | dict(url=f"http://127.0.0.1:{server.server_port}/b.txt")
    monkeypatch.setattr(core, "registry", lambda: {"a/b.txt": row})
    try:
        with pytest.raises(ValueError, match="(?i)hash"): core.fetch("a/b.txt")
    finally: server.shutdown()
    assert not [p for p in (mine/"cache").rglob("*") if p.is_file()]


def test_registry_is_complete():
    "Every row has an address and a checksum."
    for name, row in core.registry().items():
        assert row["url"].startswith("https://") and len(row["sha256"]) == 64 and int(row["bytes"]) > 0, name


def test_a_notebook_shows_the_message_of_an_input_error_alone(capsys):
    from IPython.core.interactiveshell import InteractiveShell
    shell = InteractiveShell()
    shell.run_cell("from fairness_repair.core import check_value")
    shell.run_cell("check_value('draws', -2, int, low=0)")
    shown = capsys.readouterr().out.strip()
    assert shown.startswith("InputError: draws = -2: needs") and "\n" not in shown, shown
