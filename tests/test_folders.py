"Folders: held by one run at a time, and checked before anything is written."
import os, signal, subprocess, sys, time

import pytest

from fairness_repair.core import InputError, check_output_folder, disk_errors, hold_folder, output_folder, paths

env = os.environ | dict(PYTHONPATH=str(paths.root))


def run(code, **options): return subprocess.Popen([sys.executable, "-c", code], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_a_killed_run_holds_nothing(tmp_path):
    "The second run is told by whom the folder is held; after a kill it is free, although the note is still there."
    holder = run(f"from fairness_repair.core import *; from pathlib import Path; import time\nwith hold_folder(Path({str(tmp_path)!r})): print('held', flush=True); time.sleep(60)")
    assert holder.stdout.readline() == "held\n", holder.communicate()
    with pytest.raises(InputError, match=rf"in use by process {holder.pid} on .+, since \d{{4}}-"):
        with hold_folder(tmp_path): pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path/".running.json").exists()
    with hold_folder(tmp_path): pass
    assert not (tmp_path/".running.json").exists()


def test_folder_is_free_after_an_error(tmp_path):
    with pytest.raises(KeyError):
        with hold_folder(tmp_path): raise KeyError
    with hold_folder(tmp_path): pass


def test_folder_for_figures_that_is_a_file(tmp_path, monkeypatch):
    (tmp_path/"thesis.tex").touch()
    for place in ("thesis.tex", "thesis.tex/figures"):
        monkeypatch.setenv("FAIRNESS_REPAIR_FIGURES", str(tmp_path/place))
        with pytest.raises(InputError, match="a part of the path is a file"): output_folder("FIGURES", tmp_path)


@pytest.mark.parametrize("code", ["check_output_folder('out', {folder!r} + '/new')", "output_folder('FIGURES', Path({folder!r})/'new')",
                                  "write_whole(Path({folder!r})/'a.txt', 'x')", "hold_folder(Path({folder!r})).__enter__()"])
def test_folder_without_permission(tmp_path, code):
    "Root may write anywhere, so root becomes nobody."
    for p in (tmp_path, *tmp_path.parents[:3]): os.chmod(p, os.stat(p).st_mode | 0o555)
    os.chmod(tmp_path, 0o555)
    become = "import os; from fairness_repair.core import *; from pathlib import Path\nif os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"
    try: done = run(become + "from fairness_repair.core import write_whole\n" + "os.environ.pop('FAIRNESS_REPAIR_FIGURES', None)\n" + f"try: {code.format(folder=str(tmp_path))}\nexcept InputError as e: print(e)").communicate()
    finally: os.chmod(tmp_path, 0o755)
    assert str(tmp_path) in done[0] and "may not be written" in done[0], done


def test_other_errors_stay_what_they_are():
    for error in (KeyError("x"), ValueError("errno 28"), FileNotFoundError(2, "no such file"), InputError("mine")):
        with pytest.raises(type(error)) as raised:
            with disk_errors("a"): raise error
        assert raised.value is error


def test_unknown_user_and_null_character(tmp_path):
    assert check_output_folder("out", "~nobody-of-this-name/a").name == "a"
    with pytest.raises(InputError, match="null character"): check_output_folder("out", "a\0b")
