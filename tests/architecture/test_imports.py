"""Importing costs nothing, and any module may be imported first."""

import json
import subprocess
import sys

import pytest
from test_rooms import MODULES, ROOT

LOADED = """
import json, sys
import dist_restore as dr
loaded = [name for name in ("tensorflow", "keras", "numpy", "tensorboard") if name in sys.modules]
plain = [dr.RestoreError, dr.RuleSet, dr.RestorePlan, dr.Status, dr.RestoreReport, dr.ops.Fit]
print(json.dumps([loaded, "tensorflow" in sys.modules, sorted(set(dr.__all__) - set(dir(dr)))]))
"""


def test_importing_the_package_loads_no_tensorflow_until_a_name_needs_it():
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout) == [[], False, []]


def test_every_public_name_is_found():
    import dist_restore as dr

    assert {name: getattr(dr, name).__name__ for name in dr.__all__} == {name: name for name in dr.__all__}
    with pytest.raises(AttributeError, match="has no attribute 'restore_everything'"):
        dr.restore_everything  # noqa: B018


ALONE = """
import importlib, os, sys
import keras, tensorboard, tensorflow
failed = []
for name in sys.argv[1:]:
    child = os.fork()
    if not child:
        try:
            importlib.import_module(name)
        except BaseException as error:
            print(name, repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_modules_can_be_imported_first():
    """Names are loaded when they are asked for, in any order. Some of all: that there is no circle shows more."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *[*MODULES][::16]], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == ""
