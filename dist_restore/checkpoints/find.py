"""Which checkpoint a path means. Only names are looked at here, and whether the files of a checkpoint are all there.

TensorFlow's `latest_checkpoint` answers None where nothing is there, and names checkpoints whose data are gone;
both have ended in training from scratch. Here each is an error that lists what there is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from absl import logging
from google.protobuf import text_format
from rapidfuzz import process

from dist_restore.checkpoints.files import files
from dist_restore.core.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    RestoreError,
    UnsupportedFormatError,
)

_STATE_FILE = "checkpoint"
_STATE_LIMIT = 64 << 20
# The state file is a text proto whose generated class is no public part of TensorFlow.
_LATEST = re.compile(r"""(?<!\w)model_checkpoint_path\s*:\s*("(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')""")
_INDEX = ".index"
_DATA = re.compile(r"\.data-(\d{5,})-of-(\d{5,})$")
_SAVED_MODEL = ("saved_model.pb", "variables/variables")
_SHOWN = 8

_EXPORT = "it may hold a pickle, which can run any code when it is read; export it to safetensors"
_LATER = "not read by this version; save it as .npz or .safetensors"
_BY_SUFFIX = {
    **dict.fromkeys((".pt", ".pth", ".bin", ".pkl", ".pickle"), _EXPORT),
    **dict.fromkeys((".npy", ".msgpack"), _LATER),
}
# PyTorch Lightning calls its pickles `.ckpt`, so the first bytes tell what the name does not.
_BY_CONTENT = {b"PK\x03\x04": _EXPORT, b"\x80": _EXPORT}
_SAFETENSORS, _SAFETENSORS_INDEX = ".safetensors", ".safetensors.index.json"
_SHARDED_WEIGHTS = ".weights.json"
_HDF5 = b"\x89HDF"
# How a file of each kind begins: behind safetensors' length comes its JSON header.
_READ = {
    _SAFETENSORS_INDEX: (0, b""),
    _SAFETENSORS: (8, b"{"),
    **dict.fromkeys((".npz", ".keras"), (0, b"PK")),
    **dict.fromkeys((".h5", ".hdf5"), (0, _HDF5)),
}


def resolve_prefix(path: str | None) -> str:
    """The prefix or the file of the checkpoint that a path means.

    Args:
      path: a prefix, one of a checkpoint's own files, a file of another format, or a directory: of a SavedModel, of
        safetensors files, or of TensorFlow's checkpoints, where it means the latest one, which is the one that the
        `checkpoint` file in it names, or the only one there.

    Raises:
      CheckpointNotFoundError: nothing is there, files are missing, or there are several and nothing decides.
      UnsupportedFormatError: a file of a kind that is not read.
    """
    if not path or "\0" in path:
        raise CheckpointNotFoundError(f"expected the path of a checkpoint, found {path!r}: was any saved at all?")
    prefix = _DATA.sub("", path.removesuffix(_INDEX))
    directory, name = _split(prefix)
    names = files.list_directory(directory)
    if name and f"{name}{_INDEX}" in names:
        return _require_complete(prefix, directory, names)
    if files.is_directory(path):
        return _resolve_directory(path)
    if files.size_of(path) is not None:
        return _require_read(path)
    if name and any(n.startswith(f"{name}.data-") and _DATA.search(n) for n in names):
        raise _not_found(f"{prefix}{_INDEX}: no such file, though data files of this checkpoint exist", directory)
    raise _nothing_at(path, directory, name, names)


def is_saved_model(prefix: str) -> bool:
    """Whether a prefix is that of the variables of a SavedModel."""
    directory = prefix.removesuffix(_SAVED_MODEL[1])
    return directory != prefix and files.size_of(f"{directory}{_SAVED_MODEL[0]}") is not None


def complete_prefixes(directory: str) -> tuple[str, ...]:
    """The checkpoints in a directory whose files are all there, by the numbers in their names, ascending."""
    names = files.list_directory(directory)
    stems = [n.removesuffix(_INDEX) for n in names if n.endswith(_INDEX) and n != _INDEX]
    data = _data_files(names)
    return tuple(_join(directory, s) for s in sorted(stems, key=_natural) if not _missing(s, data))


def _require_complete(prefix: str, directory: str, names: Iterable[str]) -> str:
    missing = _missing(_split(prefix)[1], _data_files(names))
    if missing:
        raise _not_found(f"{_join(directory, missing)}: no such file, though {prefix}{_INDEX} exists", directory)
    return prefix


def _require_read(path: str) -> str:
    """A single file, where name and first bytes are of a kind that is read."""
    start, suffix = _start(path), next((s for s in _READ if path.lower().endswith(s)), "")
    if not start and suffix:
        raise CheckpointCorruptError(f"{path}: the file is empty. Copy it again, or use another checkpoint.")
    if not suffix and _suffix(path) not in _BY_SUFFIX and start.startswith(_HDF5):
        return path
    if not suffix or not start[_READ[suffix][0] :].startswith(_READ[suffix][1]):
        raise _unsupported(path)
    return path


def _resolve_directory(directory: str) -> str:
    names = set(files.list_directory(directory))
    prefixes = sorted((n.removesuffix(_INDEX) for n in names if n.endswith(_INDEX) and n != _INDEX), key=_natural)
    weights = _safetensors(names)
    kinds = (bool(prefixes) or _STATE_FILE in names, _SAVED_MODEL[0] in names, bool(weights))
    if sum(kinds) > 1:
        found = [*prefixes, *(n for n in (_STATE_FILE, _SAVED_MODEL[0]) if n in names), *weights]
        raise _undecided(directory, "checkpoints of several formats", found)
    if kinds[1]:
        return resolve_prefix(_join(directory, _SAVED_MODEL[1]))
    if len(weights) > 1:
        raise _undecided(directory, "several safetensors files, and nothing that joins them", weights)
    if weights:
        return _join(directory, weights[0])
    return _resolve_prefixes(directory, names, prefixes)


def _safetensors(names: Iterable[str]) -> tuple[str, ...]:
    """What may be meant by a folder of safetensors files: its index; without one, all of them."""
    indexes = tuple(sorted(n for n in names if n.endswith(_SAFETENSORS_INDEX)))
    shards = re.compile(
        "|".join(re.escape(n.removesuffix(_SAFETENSORS_INDEX)) + r"-\d+-of-\d+" for n in indexes) or r"\Z"
    )
    alone = (n for n in names if n.endswith(_SAFETENSORS) and not shards.match(n.removesuffix(_SAFETENSORS)))
    return (*indexes, *sorted(alone))


def _undecided(directory: str, problem: str, found: Iterable[str]) -> CheckpointNotFoundError:
    paths = [_join(directory, name) for name in found]
    shown = ", ".join(paths[:_SHOWN]) + (f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else "")
    return CheckpointNotFoundError(f"{directory}: holds {problem}: {shown}. Pass the path of one of them.")


def _resolve_prefixes(directory: str, names: set[str], prefixes: list[str]) -> str:
    if _STATE_FILE in names:
        return _resolve_state(directory)
    if len(prefixes) == 1:
        return _require_complete(_join(directory, prefixes[0]), directory, names)
    if prefixes:
        raise _not_found(
            f"{directory}: {len(prefixes)} checkpoints and no `{_STATE_FILE}` file that says which is the latest",
            directory,
        )
    raise CheckpointNotFoundError(f"{directory}: no checkpoint in this directory. {_contents(names)}")


def _resolve_state(directory: str) -> str:
    latest, is_recorded_absolute = _latest(directory)
    folder, name = _split(latest)
    # Absolute paths, as TF1's Saver writes them, are those of the original once a directory was moved or copied.
    here = _join(directory, name)
    if is_recorded_absolute and not _is_below(folder, directory):
        return _require_here(latest, here, directory)
    names = files.list_directory(folder)
    if f"{name}{_INDEX}" in names:
        return _require_complete(latest, folder, names)
    if here in complete_prefixes(directory):
        return here
    raise _lost(latest, directory)


def _require_here(latest: str, here: str, directory: str) -> str:
    """The checkpoint in the directory that was given, and never one of the same name that lies elsewhere."""
    folder, name = _split(latest)
    if here in complete_prefixes(directory):
        logging.info("dist_restore: %s names %s; took %s", _join(directory, _STATE_FILE), latest, here)
        return here
    if f"{name}{_INDEX}" not in files.list_directory(folder):
        raise _lost(latest, directory)
    raise _not_found(
        f"{_join(directory, _STATE_FILE)} names {latest}, which is in another directory, and there is no complete "
        f"{here}: the directory was copied without it? Pass {latest} itself if that is meant",
        directory,
    )


def _lost(latest: str, directory: str) -> CheckpointNotFoundError:
    state = _join(directory, _STATE_FILE)
    return _not_found(f"{latest}{_INDEX}: no such file, though {state} names it as the latest checkpoint", directory)


def _is_below(folder: str, directory: str) -> bool:
    """Whether a folder is a directory or lies in it, links followed."""
    inner, outer = (p if files.is_remote(p) else os.path.realpath(p or ".") for p in (folder, directory))
    return f"{inner.rstrip('/')}/".startswith(f"{outer.rstrip('/')}/")


def _latest(directory: str) -> tuple[str, bool]:
    """What the state file names, and whether by an absolute path; relative names are relative to its directory."""
    path = _join(directory, _STATE_FILE)
    try:
        text = files.read_all(path, _STATE_LIMIT).decode("utf-8")
        found = _LATEST.search(text)
        name = text_format.Tokenizer([found[1]]).ConsumeString() if found else ""
    except (UnicodeDecodeError, text_format.ParseError) as error:
        raise _not_found(f"{path}: cannot be read: {error}", directory) from error
    if not name:
        raise _not_found(f"{path}: names no checkpoint", directory)
    is_absolute = files.is_remote(name) or os.path.isabs(name)
    return name if is_absolute else _join(directory, name), is_absolute


def _data_files(names: Iterable[str]) -> dict[str, dict[int, set[int]]]:
    """Numbers of the data files that are there, by prefix and by how many there are said to be."""
    found: dict[str, dict[int, set[int]]] = {}
    for name in names:
        match = _DATA.search(name)
        if match:
            found.setdefault(name[: match.start()], {}).setdefault(int(match[2]), set()).add(int(match[1]))
    return found


def _missing(stem: str, data: dict[str, dict[int, set[int]]]) -> str:
    """Name of the first data file that is missing; empty when all are there."""
    sets = data.get(stem) or {1: set()}
    first = {total: next((i for i in range(total) if i not in have), -1) for total, have in sets.items()}
    if -1 in first.values():
        return ""
    total, number = min(first.items())
    return f"{stem}.data-{number:05d}-of-{total:05d}"


def _not_found(problem: str, directory: str) -> CheckpointNotFoundError:
    complete = complete_prefixes(directory)
    if not complete:
        return CheckpointNotFoundError(f"{problem}. No complete checkpoint lies in {directory or '.'}.")
    shown = ", ".join(complete[-_SHOWN:]) + (f" and {len(complete) - _SHOWN} older ones" * (len(complete) > _SHOWN))
    return CheckpointNotFoundError(f"{problem}. Complete checkpoints there: {shown}. Pass the path of one of them.")


def _nothing_at(path: str, directory: str, name: str, names: tuple[str, ...]) -> CheckpointNotFoundError:
    if not names and not files.is_directory(directory or "."):
        return CheckpointNotFoundError(f"{path}: no such checkpoint; the directory {directory} does not exist either")
    shown = [_DATA.sub("", n.removesuffix(_INDEX)) for n in names]
    near = [found for found, _, _ in process.extract(name, sorted(set(shown)), limit=_SHOWN, score_cutoff=60)]
    hint = f"Nearest names: {', '.join(_join(directory, n) for n in near)}." if near else _contents(names)
    return CheckpointNotFoundError(f"{path}: no such checkpoint. {hint}")


def _contents(names: Iterable[str]) -> str:
    ordered = sorted(names, key=_natural)
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    advice = next((f" {n}: {_BY_SUFFIX[_suffix(n)]}." for n in ordered if _suffix(n) in _BY_SUFFIX), "")
    return f"It holds {', '.join(ordered[:_SHOWN])}{more}.{advice}" if ordered else "It is empty."


def _unsupported(path: str) -> RestoreError:
    if path.lower().endswith(_SHARDED_WEIGHTS):
        return UnsupportedFormatError(
            f"{path}: Keras' list of the shards of weights, which is not read. Save them in one file: "
            "model.load_weights(path) in the program that wrote it, then model.save_weights('model.weights.h5')."
        )
    advice = _BY_SUFFIX.get(_suffix(path)) or _by_content(path)
    return UnsupportedFormatError(
        f"{path}: {advice}. Expected a TensorFlow checkpoint (a prefix with "
        f"`prefix{_INDEX}` and `prefix.data-*` files), a SavedModel, or a file that ends in one of {', '.join(_READ)}."
    )


def _by_content(path: str) -> str:
    start = _start(path)
    return next(
        (advice for magic, advice in _BY_CONTENT.items() if start.startswith(magic)), "a file of an unknown kind"
    )


def _start(path: str) -> bytes:
    start = bytearray(9)
    file = files.open_file(path)
    try:
        count = file.read_into(memoryview(start), 0)
    finally:
        file.close()
    return bytes(start[:count])


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _natural(name: str) -> tuple[tuple[int, str], ...]:
    """Sorts `ckpt-10` behind `ckpt-9`."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name))


def _split(path: str) -> tuple[str, str]:
    """Directory and last name; `os.path.split` would make `gs:/` of `gs://`."""
    directory, slash, name = path.rpartition("/")
    return (directory or slash) if not directory.endswith(":/") else directory + slash, name


def _join(directory: str, name: str) -> str:
    return name if not directory else f"{directory.rstrip('/')}/{name}" if directory.strip("/") else f"/{name}"
