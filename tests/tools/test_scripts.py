"""What surrounds the package: the scripts' flags and exit codes, the rule files, the pins."""

from __future__ import annotations

import itertools
import os
import pathlib
import re
import subprocess
import tomllib

import pytest
import tensorflow as tf

import dist_restore as dr
from lm.sizes import Sizes
from lm.state import build
from places import ROOT
from warm import run_script

# Scripts see the package whether it is installed or not, as the tests do.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
RULES = ROOT / "configs" / "rules" / "lm_v1_to_v2.toml"


def run(script: str, *flags: str, cwd: pathlib.Path = ROOT) -> subprocess.CompletedProcess[str]:
    return run_script([str(ROOT / "scripts" / f"{script}.py"), *flags], folder=cwd, environment=ENVIRONMENT)


@pytest.fixture(scope="module")
def version_1(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Returns a checkpoint of version 1 at its default sizes."""
    return build(1, Sizes()).checkpoint().save(str(tmp_path_factory.mktemp("v1") / "ckpt"))


@pytest.mark.parametrize("script", ["train_lm", "plan_restore", "convert_checkpoint", "demo"])
def test_help_names_every_flag(script: str) -> None:
    names = re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", (ROOT / "scripts" / f"{script}.py").read_text())
    said = run(script, "--help").stdout
    assert len(names) >= 4
    assert [name for name in names if not re.search(rf"--(\[no\])?{name}:", said)] == []


def test_a_complete_plan_is_0(version_1: str, tmp_path: pathlib.Path) -> None:
    plan_file = tmp_path / "plan.json"
    done = run(
        "plan_restore",
        f"--restore_from={version_1}",
        f"--rules={RULES}",
        "--target=lm.targets:version_2",
        f"--json={plan_file}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    plan = dr.RestorePlan.from_json(plan_file.read_text())
    assert plan.mapping()["model/blocks/1/attention/qkv/kernel"] == tuple(f"model/block_1/{x}/kernel" for x in "qkv")


def test_several_checkpoints_are_planned_by_name(version_1: str, tmp_path: pathlib.Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(
        '[[rule]]\nfrom = ["a:model/{rest}", "b:model/{rest}"]\nto = "model/{rest}"\nops = [{ mean = {} }]\n'
        '[[rule]]\nfrom = "b:{rest}"\nto = "{rest}"\n'
    )
    flags = [f"--restore_from=a={version_1}", f"--restore_from=b={version_1}", f"--rules={rules}"]
    done = run("plan_restore", *flags, "--target=lm.targets:version_1", f"--json={tmp_path / 'plan.json'}")
    assert done.returncode == 0, done.stdout + done.stderr
    plan = dr.RestorePlan.from_json((tmp_path / "plan.json").read_text())
    assert plan.checkpoints == (("a", version_1), ("b", version_1))
    assert plan.mapping()["optimizer/iterations"] == ("b:optimizer/iterations",)
    assert "from a: " in done.stdout and f"tensors of {version_1}" in done.stdout


def test_a_plan_that_restore_would_refuse_is_1(version_1: str) -> None:
    done = run("plan_restore", f"--restore_from={version_1}", "--target=lm.targets:version_2", "--min_coverage=0")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "restore() would refuse model/blocks/0/attention/qkv/kernel" in done.stderr


def test_too_little_coverage_is_1(version_1: str) -> None:
    plan = ["plan_restore", f"--restore_from={version_1}", "--target=lm.targets:version_2", "--unmatched=keep"]
    assert run(*plan).returncode == 1
    done = run(*plan, "--min_coverage=0.001")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--restore_from={tmp}/nowhere"], "CheckpointNotFoundError"),
        (["--restore_from=a={tmp}/nowhere", "--restore_from=b={tmp}/nowhere"], "checkpoint 'a': {tmp}/nowhere"),
        (["--restore_from=a={tmp}/one", "--restore_from={tmp}/two"], "write name=path"),
        (["--rules={tmp}/bad.toml"], "RuleError"),
        (["--rules={tmp}/nowhere.toml"], "nowhere.toml"),
        (["--target=lm.targets"], "module:function"),
        (["--target=lm.targets:version_9"], "version_9"),
        (["--target=no_such_module:build"], "no_such_module"),
        (["--target=mine:needs_more"], "--target=mine:needs_more raised TypeError"),
        (["--target=mine:broken"], "raised RuntimeError: no data (mine.py, line 5)"),
        (["--min_coverage=2"], "min_coverage"),
        (["--no_such_flag"], "no_such_flag"),
    ],
)
def test_what_cannot_be_planned_is_2(version_1: str, tmp_path: pathlib.Path, flags: list[str], message: str) -> None:
    (tmp_path / "bad.toml").write_text('[[rule]]\nfrom = "model/no_such_layer/kernel"\nto = "model/head/kernel"\n')
    (tmp_path / "mine.py").write_text(
        "def needs_more(width):\n    return width\n\ndef broken():\n    raise RuntimeError('no data')\n"
    )
    given = [flag.format(tmp=tmp_path) for flag in flags]
    if not given[0].startswith("--restore_from"):
        given.append(f"--restore_from={version_1}")
    done = run("plan_restore", "--target=lm.targets:version_1", *given, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message.format(tmp=tmp_path) in done.stderr and "Traceback" not in done.stderr


def test_the_target_may_be_a_module_of_the_present_directory(version_1: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine.py").write_text("from lm.targets import version_1\n\ndef build():\n    return version_1()\n")
    done = run("plan_restore", f"--restore_from={version_1}", "--target=mine:build", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_demo_leaves_a_directory_alone_that_is_not_its_own(tmp_path: pathlib.Path) -> None:
    (tmp_path / "thesis.tex").touch()
    done = run("demo", f"--out={tmp_path}")
    assert done.returncode == 1 and "something else" in done.stderr
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize(
    "path",
    sorted(p for d in ("rules", "examples") for p in (ROOT / "configs" / d).glob("*.toml")),
    ids=lambda path: path.name,
)
def test_every_rule_file_is_one(path: pathlib.Path) -> None:
    assert tomllib.loads(path.read_text())["rule"]
    dr.RuleSet.load(path)


CLUSTERS = sorted(path for path in (ROOT / "configs" / "clusters").iterdir() if path.suffix != ".md")


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.name)
def test_launch_files_use_flags_that_there_are(path: pathlib.Path) -> None:
    text = re.sub(r"^\s*#.*$", "", path.read_text(), flags=re.MULTILINE)
    flags = re.findall(r"--(\w+)", text[text.index("train_lm.py") :])
    known = re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", (ROOT / "scripts" / "train_lm.py").read_text())
    assert {"strategy", "checkpoint_dir", "batch_size"} <= set(flags) <= set(known)


@pytest.mark.parametrize("path", [path for path in CLUSTERS if path.suffix != ".yaml"], ids=lambda path: path.name)
def test_launch_scripts_are_bash(path: pathlib.Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)


def project_name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[=<>\[]", requirement)[0]).lower()


def test_pins_name_versions_and_no_place() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.]+", pin) for pin in pins)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = itertools.chain(project["dependencies"], *project["optional-dependencies"].values())
    assert set(map(project_name, asked)) <= set(map(project_name, pins))


def test_the_forecast_has_a_row_for_each_number_of_workers(version_1: str) -> None:
    given = ["--forecast", "--storage_mb_s=150", "--storage_each_mb_s=150"]
    done = run("plan_restore", f"--restore_from={version_1}", "--target=lm.targets:version_1", *given)
    assert done.returncode == 0, done.stdout + done.stderr
    table = done.stdout.partition("Predicted seconds to read")[2]
    rows = re.findall(r"^ +(\d+) +([\d.]+) s(?: \*)? +([\d.]+) s(?: \*)? +([\d.]+) s", table, re.MULTILINE)
    assert [int(row[0]) for row in rows] == [1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512]
    assert float(rows[-1][1]) > float(rows[-1][3])


# ---- convert_checkpoint --------------------------------------------------------------------------------------


def test_a_converted_checkpoint_is_0(version_1: str, tmp_path: pathlib.Path) -> None:
    done = run(
        "convert_checkpoint",
        f"--from={version_1}",
        f"--rules={RULES}",
        "--target=lm.targets:version_2",
        f"--to={tmp_path}/ckpt-1",
        "--update_latest",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Written: {tmp_path}/ckpt-1" in done.stdout
    assert tf.train.latest_checkpoint(str(tmp_path)) == f"{tmp_path}/ckpt-1"
    status = build(2, Sizes()).checkpoint().restore(f"{tmp_path}/ckpt-1")
    status.assert_existing_objects_matched()
    status.assert_consumed()


def test_a_dry_run_and_its_plan(version_1: str, tmp_path: pathlib.Path) -> None:
    given = ["convert_checkpoint", f"--from={version_1}", f"--like={version_1}"]
    done = run(*given, "--dry_run", f"--json={tmp_path}/plan.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    done = run(*given, f"--plan={tmp_path}/plan.json", f"--to={tmp_path}/ckpt")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_conversion_that_is_refused_is_1(version_1: str, tmp_path: pathlib.Path) -> None:
    given = ["convert_checkpoint", f"--from={version_1}", "--target=lm.targets:version_2", f"--to={tmp_path}/ckpt"]
    for flags in ([], ["--dry_run"]):
        done = run(*given, *flags)
        assert done.returncode == 1 and "model/blocks/0/attention/qkv/kernel" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--from={tmp}/nowhere"], "CheckpointNotFoundError"),
        (["--rules={tmp}/nowhere.toml"], "nowhere.toml"),
        (["--like={tmp}/nowhere", "--target="], "CheckpointNotFoundError"),
        (["--like={tmp}/nowhere"], "either --target or --like"),
        (["--to="], "--to must say"),
        (["--target=lm.targets:version_9"], "version_9"),
        (["--plan={tmp}/nowhere.json"], "nowhere.json"),
    ],
)
def test_what_cannot_be_converted_is_2(version_1: str, tmp_path: pathlib.Path, flags: list[str], message: str) -> None:
    given = [f"--from={version_1}", "--target=lm.targets:version_1", f"--to={tmp_path}/ckpt"]
    done = run("convert_checkpoint", *given, *(flag.format(tmp=tmp_path) for flag in flags))
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_inverted_rule_file_leads_back(tmp_path: pathlib.Path) -> None:
    done = run("invert_rules", f"--rules={RULES}", f"--to={tmp_path}/back.toml")
    assert done.returncode == 0, done.stderr
    assert dr.RuleSet.load(tmp_path / "back.toml").inverse().rules == dr.RuleSet.load(RULES).rules
    assert run("invert_rules", f"--rules={tmp_path}/back.toml").stdout.startswith("[[rule]]\nfrom = [")
    done = run("invert_rules", f"--rules={RULES}", f"--to={tmp_path}/back.toml")
    assert done.returncode == 2 and "FileExistsError" in done.stderr
    halves = '[[rule]]\nfrom = "a/{i}"\nto = "b/{i//2}"\n'
    (tmp_path / "halves.toml").write_text(halves)
    done = run("invert_rules", f"--rules={tmp_path}/halves.toml")
    assert done.returncode == 2 and "rule 1 of halves.toml" in done.stderr and "Traceback" not in done.stderr


def test_a_conversion_with_inverted_rules(version_1: str, tmp_path: pathlib.Path) -> None:
    """The rules lead from `--like` to `--from`; here both are one model, and the rules name what stays."""
    (tmp_path / "r.toml").write_text('[[rule]]\nfrom = "model/head/{rest}"\nto = "model/head/{rest}"\n')
    given = ["convert_checkpoint", f"--from={version_1}", f"--like={version_1}", f"--rules={tmp_path}/r.toml"]
    done = run(*given, "--invert_rules", "--dry_run")
    assert done.returncode == 0, done.stdout + done.stderr
