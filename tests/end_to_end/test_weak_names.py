"""Programs of which a name is weak: made up by a library, shared by two, or known to slots only."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

import keras
import pytest
import tensorflow as tf
import tf_keras

import dist_restore as dr
from live import assert_all_hold, built, raw, refuse, restore, save, scramble, values

Checkpoint = tf.train.Checkpoint
Layers = keras.layers


def proofs(report: dr.RestoreReport, part: str) -> set[dr.Proof]:
    return {e.proof for e in report.plan.entries if part in e.target and e.sources}


# ---- Modules of TensorFlow -------------------------------------------------------------------------------


class Linear(tf.Module):
    """Has the name of its class where it is given none."""

    def __init__(self, *, bias: bool, name: str | None = None) -> None:
        super().__init__(name=name)
        with self.name_scope:
            self.w = tf.Variable(tf.zeros([4, 4]), name="w")
            if bias:
                self.b = tf.Variable(tf.zeros([4]), name="b")


class Group(tf.Module):
    """Two layers."""

    def __init__(self, first: Linear, second: Linear) -> None:
        super().__init__()
        self.first, self.second = first, second


def with_momentum(model: tf.Module) -> Checkpoint:
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build([*model.variables])
    return Checkpoint(model=model, optimizer=optimizer)


def test_a_name_that_a_module_has_from_its_class_is_no_name(tmp_path: pathlib.Path) -> None:
    """The bias of the first layer is gone, and the second one has a new one: both are `linear/b`."""
    old = with_momentum(Group(Linear(bias=True), Linear(bias=False)))
    new = with_momentum(Group(Linear(bias=False), Linear(bias=True)))
    refuse(dr.UnmatchedError, new, save(old, tmp_path), "model/second/b")


def test_a_name_that_somebody_gave_to_a_module_is_one(tmp_path: pathlib.Path) -> None:
    old = Group(Linear(bias=True, name="stem"), Linear(bias=True, name="head"))
    scramble(old, seed=1)
    path = save(with_momentum(old), tmp_path)
    new = Group(Linear(bias=True, name="head"), Linear(bias=True, name="stem"))
    with pytest.raises(dr.AmbiguousMatchError, match="stem"):  # the attributes say one thing, the names another
        restore(with_momentum(new), path)


# ---- One model into two ----------------------------------------------------------------------------------


class Net(keras.Model):
    """Two layers with names."""

    def __init__(self, *names: str) -> None:
        super().__init__(name="net")
        self.stem, self.head = (Layers.Dense(4, name=name) for name in names)
        self.build((None, 4))

    def build(self, shape: Sequence[int | None]) -> None:
        self.stem.build(shape)
        self.head.build(shape)
        super().build(shape)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.head(self.stem(x))


def with_adam(**models: keras.Model) -> Checkpoint:
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build([v for model in models.values() for v in model.trainable_variables])
    return Checkpoint(**models, optimizer=optimizer)


def test_one_model_is_not_taken_for_two_whatever_its_slots_call_it(tmp_path: pathlib.Path) -> None:
    path = save(with_adam(model=Net("stem", "head")), tmp_path)
    two = with_adam(query=Net("stem", "head"), document=Net("stem", "head"))
    refuse(dr.AmbiguousMatchError, two, path, "query/stem/kernel", "document/stem/kernel")


# ---- A root of one variable ------------------------------------------------------------------------------


class Bare(keras.Model):
    """A body with automatic names in a row, and one layer beside."""

    def __init__(self, attribute: str) -> None:
        super().__init__()
        self.body = keras.Sequential([Layers.Input((4,)), Layers.Dense(4), Layers.Dense(4)])
        setattr(self, attribute, Layers.Dense(4, use_bias=False))
        getattr(self, attribute).build((None, 4))
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.body(x)


def test_a_layer_beside_the_rest_of_a_bare_model_is_no_root_of_another_name(tmp_path: pathlib.Path) -> None:
    path = save(Checkpoint(Bare("head")), tmp_path)
    refuse(dr.UnmatchedError, Checkpoint(Bare("tail")), path, "tail/kernel")


# ---- Names that only slots know --------------------------------------------------------------------------


class Trunk(keras.Model):
    """Every variable's full name is `trunk/kernel` or `trunk/gamma`; slots alone have the layers' names."""

    def __init__(self, *names: str) -> None:
        super().__init__(name="trunk")
        self.out = keras.Sequential(
            [Layers.BatchNormalization(name=names[0]), Layers.LayerNormalization(name=names[1])]
        )

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.out(x)


def around(*names: str) -> keras.Model:
    inputs = keras.Input((4,))
    return keras.Model(inputs, Layers.Dense(4, name="head")(Trunk(*names)(inputs)))


def test_a_layer_that_slots_call_otherwise_is_not_taken_for_the_one_in_its_place(tmp_path: pathlib.Path) -> None:
    path = save(with_adam(model=around("query", "norm")), tmp_path)
    refuse(dr.AmbiguousMatchError, with_adam(model=around("swap", "norm")), path, "its layer is called 'swap'")


def test_what_slots_call_the_same_is_found(tmp_path: pathlib.Path) -> None:
    old, new = around("query", "norm"), around("query", "norm")
    for number, model in enumerate((old, new)):
        scramble(model, seed=number)
    path = save(with_adam(model=old), tmp_path)
    restore(with_adam(model=new), path)
    assert_all_hold(new.variables, values(old.variables))


# ---- Places ----------------------------------------------------------------------------------------------


def stack(*layers: Callable[[], keras.layers.Layer]) -> keras.Model:
    inputs = x = keras.Input((4,))
    for make in layers:
        x = make()(x)
    return keras.Model(inputs, x)


def test_a_place_is_order_even_where_no_other_layer_is_alike(tmp_path: pathlib.Path) -> None:
    """A layer that took the place of another one of its class and shape leaves no trace in any file."""

    def program() -> keras.Model:
        return stack(
            lambda: Layers.Dense(4), lambda: Layers.LayerNormalization(), lambda: Layers.Dense(4, use_bias=False)
        )

    old, new = program(), program()
    report = restore(Checkpoint(model=new), save(Checkpoint(model=old), tmp_path))
    assert proofs(report, "model/") == {dr.Proof.ORDER}
    assert_all_hold([raw(v) for v in new.variables], values(old.variables))


# ---- Layers out of sight: their variables are in an optimizer's list only ---------------------------------


def trained_alone(reverse: bool) -> tuple[Checkpoint, list[tf.Variable]]:
    """Equal layers without names that no model holds, made in one order or the other and trained in one."""
    made = [Layers.Dense(4) for _ in range(3)][:: -1 if reverse else 1]
    for layer in made:
        layer.build((None, 4))
    variables = [v for layer in made for v in layer.trainable_variables]
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build(variables)
    return Checkpoint(optimizer=optimizer), [raw(v) for v in variables]


def test_automatic_names_in_an_optimizers_list_are_no_names(tmp_path: pathlib.Path) -> None:
    root, old = trained_alone(reverse=False)
    for number, variable in enumerate(old):
        variable.assign_add(tf.fill(variable.shape, float(number)))
    path = root.save(str(tmp_path / "ckpt"))
    turned, _ = trained_alone(reverse=True)
    refuse(dr.AmbiguousMatchError, turned, path, "count in another order")
    same, new = trained_alone(reverse=False)
    report = restore(same, path)
    assert_all_hold(new, values(old))
    assert proofs(report, "trainable_variables") == {dr.Proof.ORDER}


class Body(keras.Model):
    """A Sequential that nobody calls, as a list of blocks; and a head of the same class as what is in them."""

    def __init__(self, *, frozen: bool = False) -> None:
        super().__init__()
        self.blocks = keras.Sequential([Layers.Dense(4), Layers.Dense(4)])
        self.head = Layers.Dense(4)
        for layer in (*self.blocks.layers, self.head):
            layer.build((None, 4))
        self.blocks.layers[0].trainable = not frozen
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        for layer in self.blocks.layers:
            x = layer(x)
        return self.head(x)


def in_order(model: Body) -> list[tf.Variable]:
    return [raw(v) for layer in (*model.blocks.layers, model.head) for v in layer.variables]


def test_a_sequential_that_is_a_list_of_blocks_reads_its_own(tmp_path: pathlib.Path) -> None:
    old, new = Body(), Body()
    for number, variable in enumerate(in_order(old)):
        variable.assign_add(tf.fill(variable.shape, float(number)))
    report = restore(with_adam(model=new), save(with_adam(model=old), tmp_path))
    assert_all_hold(in_order(new), values(in_order(old)))
    assert proofs(report, "model/blocks") == {dr.Proof.ORDER}


def test_what_tensorflow_does_not_save_of_it_is_refused_by_name(tmp_path: pathlib.Path) -> None:
    path = save(with_adam(model=Body(frozen=True)), tmp_path)
    refuse(dr.UnmatchedError, with_adam(model=Body(frozen=True)), path, "never saves this variable by itself")


class Inner(keras.layers.Layer):
    """A block whose variable has the block's name in its path."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name)
        self.dense = Layers.Dense(4)

    def build(self, shape: Sequence[int | None]) -> None:
        self.dense.build(shape)
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.dense(x)


class Outer(keras.Model):
    """Two such blocks under attributes."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(name="outer")
        self.first, self.second = Inner(first), Inner(second)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.second(self.first(x))


def outer(*names: str) -> keras.Model:
    model = Outer(*names)
    model(tf.zeros((1, 4)))
    return model


def test_exchanged_names_of_blocks_are_seen_in_what_slots_call_the_layers_inside(tmp_path: pathlib.Path) -> None:
    path = save(with_adam(model=outer("a", "b")), tmp_path)
    refuse(dr.AmbiguousMatchError, with_adam(model=outer("b", "a")), path, "model/first/dense/kernel")
    restore(with_adam(model=outer("a", "b")), path)


# ---- Two variables into one ------------------------------------------------------------------------------


class Pair(tf.Module):
    """Two layers, of one kernel or of two."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.first, self.second = tf.Module(), tf.Module()
        self.first.kernel = tf.Variable(tf.ones([2, 2]))
        self.second.kernel = self.first.kernel if tied else tf.Variable(tf.zeros([2, 2]))


def test_two_variables_are_not_taken_for_one_that_has_both_names(tmp_path: pathlib.Path) -> None:
    path = save(Checkpoint(model=Pair(tied=False)), tmp_path)
    refuse(dr.AmbiguousMatchError, Checkpoint(model=Pair(tied=True)), path, "model/first/kernel", "its names disagree")


def test_one_variable_with_two_names_reads_its_own(tmp_path: pathlib.Path) -> None:
    old, new = Pair(tied=True), Pair(tied=True)
    scramble(old, seed=1)
    restore(Checkpoint(model=new), save(Checkpoint(model=old), tmp_path))
    assert_all_hold([new.first.kernel], values([old.first.kernel]))


# ---- Attributes made from automatic names ----------------------------------------------------------------


class Borrowed(keras.Model):
    """`setattr(self, layer.name, layer)`: the attributes are counters."""

    def __init__(self, order: str) -> None:
        super().__init__()
        made = {role: Layers.Dense(4) for role in order}
        for layer in made.values():
            setattr(self, layer.name, layer)
            layer.build((None, 4))
        self.chain = tuple(made[role] for role in sorted(order))
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return x


@pytest.mark.parametrize(
    ("before", "now", "proof"),
    [("abc", "cba", dr.Proof.ORDER), ("a", "a", dr.Proof.NAME)],
    ids=["several of one class", "one that is called as its layer"],
)
def test_attributes_made_from_automatic_names_are_order_where_there_are_several(
    before: str, now: str, proof: dr.Proof, tmp_path: pathlib.Path
) -> None:
    keras.backend.clear_session()
    path = save(Checkpoint(model=Borrowed(before)), tmp_path)
    keras.backend.clear_session()
    report = restore(Checkpoint(model=Borrowed(now)), path)
    assert proofs(report, "model/") == {proof}


# ---- Lines in another order ------------------------------------------------------------------------------


def queries(kit: object, order: str) -> object:
    """Three layers without names on one input, made in some order and called in one."""
    made = {role: kit.layers.Dense(4) for role in order}  # type: ignore[attr-defined]
    inputs = kit.Input((4,))  # type: ignore[attr-defined]
    x = kit.layers.Add()([made[role](inputs) for role in "kqv"])  # type: ignore[attr-defined]
    return kit.Model(inputs, kit.layers.Dense(2, name="out")(x))  # type: ignore[attr-defined]


def heads(kit: object, order: str) -> object:
    """Three heads on a trunk."""
    made = {role: kit.layers.Dense(4) for role in order}  # type: ignore[attr-defined]
    inputs = kit.Input((4,))  # type: ignore[attr-defined]
    x = kit.layers.Dense(4, name="trunk")(inputs)  # type: ignore[attr-defined]
    return kit.Model(inputs, [made[role](x) for role in "kqv"])  # type: ignore[attr-defined]


def towers(kit: object, order: str) -> object:
    """A tower for each of three inputs."""
    made = {role: kit.layers.Dense(4) for role in order}  # type: ignore[attr-defined]
    inputs = [kit.Input((4,), name=f"input_{role}") for role in "kqv"]  # type: ignore[attr-defined]
    parts = [made[role](x) for role, x in zip("kqv", inputs, strict=True)]
    return kit.Model(inputs, kit.layers.Add()(parts))  # type: ignore[attr-defined]


def fresh(make: Callable[[object, str], object], kit: object, order: str) -> object:
    """As in a process of its own: automatic names begin anew."""
    kit.backend.clear_session()  # type: ignore[attr-defined]
    return make(kit, order)


FORMS = [(keras, f) for f in ("ckpt", "ckpt adam", ".keras", ".weights.h5", ".h5")]
FORMS += [(tf_keras, f) for f in ("ckpt", "ckpt adam", ".keras", ".h5")]


@pytest.mark.parametrize(("kit", "form"), FORMS, ids=[f"{kit.__name__} {form}" for kit, form in FORMS])
@pytest.mark.parametrize("make", [queries, heads, towers])
def test_layers_without_names_that_are_made_in_another_order_are_not_crossed(
    make: Callable[[object, str], object], kit: object, form: str, tmp_path: pathlib.Path
) -> None:
    def root_of(model: object) -> Checkpoint:
        if form != "ckpt adam":
            return Checkpoint(model=model)
        return Checkpoint(model=model, optimizer=built(kit.optimizers.Adam(0.1), model))  # type: ignore[attr-defined]

    old = fresh(make, kit, "qkv")
    path = str(tmp_path / f"net{form}")
    if form.startswith("ckpt"):
        path = save(root_of(old), tmp_path)
    else:
        (old.save_weights if form == ".weights.h5" else old.save)(path)  # type: ignore[attr-defined]
    refuse(dr.AmbiguousMatchError, root_of(fresh(make, kit, "vkq")), path, "model/dense")
    restore(root_of(fresh(make, kit, "qkv")), path)


class Coder(keras.Model):
    """Two Sequential models without an input, assigned in one order or the other and called in one."""

    def __init__(self, *order: str) -> None:
        super().__init__()
        for attribute in order:
            setattr(self, attribute, keras.Sequential([Layers.Dense(4), Layers.Dense(4)]))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.dec(self.enc(x))


def trained_by(make: Callable[[], keras.Optimizer] | None, model: keras.Model) -> Checkpoint:
    return Checkpoint(model=model, **({"optimizer": built(make(), model)} if make else {}))


OPTIMIZERS = pytest.mark.parametrize(
    "make",
    [None, lambda: keras.optimizers.SGD(0.1, momentum=0.9), lambda: keras.optimizers.Adam(0.1)],
    ids=["no optimizer", "momentum", "adam"],
)


@OPTIMIZERS
@pytest.mark.parametrize("now", [("enc", "dec"), ("dec", "enc")], ids=["its own", "lines exchanged"])
def test_sequential_models_under_attributes_are_told_by_these_whatever_the_lines(
    now: tuple[str, str], make: Callable[[], keras.Optimizer] | None, tmp_path: pathlib.Path
) -> None:
    old, new = Coder("enc", "dec"), Coder(*now)
    for seed, model in enumerate((old, new)):
        model(tf.zeros((1, 4)))
        scramble(model, seed=seed)
    restore(trained_by(make, new), save(trained_by(make, old), tmp_path))
    for attribute in now:
        assert_all_hold(getattr(new, attribute).variables, values(getattr(old, attribute).variables))


# ---- Blocks with names, of layers without ----------------------------------------------------------------


def stages(*names: str) -> keras.Model:
    """Sequential models without an input, in a row."""
    inputs = x = keras.Input((4,))
    for name in names:
        x = keras.Sequential([Layers.Dense(4), Layers.Dense(4)], name=name)(x)
    return keras.Model(inputs, Layers.Dense(2, name="head")(x))


def scrambled(model: keras.Model, seed: int) -> keras.Model:
    scramble(model, seed=seed)
    return model


@OPTIMIZERS
def test_stages_that_are_exchanged_take_their_weights_along(
    make: Callable[[], keras.Optimizer] | None, tmp_path: pathlib.Path
) -> None:
    old, new = scrambled(stages("enc", "mid", "dec"), 1), scrambled(stages("mid", "enc", "dec"), 2)
    restore(trained_by(make, new), save(trained_by(make, old), tmp_path))
    for name in ("enc", "mid", "dec"):
        assert_all_hold(new.get_layer(name).variables, values(old.get_layer(name).variables))


@OPTIMIZERS
@pytest.mark.parametrize(
    ("before", "now", "new"),
    [
        (("enc", "mid"), ("mid", "fresh"), "model/fresh/dense"),
        (("block_1", "block_2"), ("block_2", "block_3"), "model/block_3/dense"),
    ],
    ids=["words", "numbers"],
)
def test_a_new_stage_does_not_take_the_place_of_one_that_is_gone(
    before: tuple[str, ...],
    now: tuple[str, ...],
    new: str,
    make: Callable[[], keras.Optimizer] | None,
    tmp_path: pathlib.Path,
) -> None:
    path = save(trained_by(make, scrambled(stages(*before), 1)), tmp_path)
    error = dr.AmbiguousMatchError if make else dr.UnmatchedError
    refuse(error, trained_by(make, scrambled(stages(*now), 2)), path, new)


def inside(*pairs: tuple[str, str | None]) -> keras.Model:
    """Sequential models with names, each around one layer."""
    inputs = x = keras.Input((4,))
    for stage, layer in pairs:
        x = keras.Sequential([Layers.Dense(4, name=layer)], name=stage)(x)
    return keras.Model(inputs, Layers.Dense(2, name="head")(x))


@OPTIMIZERS
def test_a_new_stage_in_the_very_place_of_one_that_is_gone_is_not_filled(
    make: Callable[[], keras.Optimizer] | None, tmp_path: pathlib.Path
) -> None:
    path = save(trained_by(make, scrambled(inside(("enc", None)), 1)), tmp_path)
    with pytest.raises((dr.AmbiguousMatchError, dr.UnmatchedError), match="model/fresh/dense"):
        restore(trained_by(make, scrambled(inside(("fresh", None)), 2)), path)


@pytest.mark.parametrize(("old", "new"), [(("document", "query"), ("query_tower", "document_tower")), (("a",), ("b",))])
def test_models_in_a_list_that_have_names_are_not_filled_by_their_places(
    old: tuple[str, ...], new: tuple[str, ...], tmp_path: pathlib.Path
) -> None:
    class Towers(keras.Model):
        def __init__(self, names: tuple[str, ...]) -> None:
            super().__init__()
            self.towers = [keras.Sequential([Layers.Dense(4, name="fc")], name=name) for name in names]

        def call(self, x: tf.Tensor) -> tf.Tensor:
            return sum(tower(x) for tower in self.towers)

    def program(names: tuple[str, ...], seed: int) -> tf.train.Checkpoint:
        model = Towers(names)
        model(tf.zeros((1, 4)))
        return trained_by(keras.optimizers.Adam, scrambled(model, seed))

    path = save(program(old, 1), tmp_path)
    refuse(dr.AmbiguousMatchError, program(new, 2), path, "model/towers/0/fc/kernel")


def test_layers_that_are_exchanged_inside_renamed_stages_are_not_crossed(tmp_path: pathlib.Path) -> None:
    old, new = inside(("enc", "pa"), ("mid", "pb")), inside(("x", "pb"), ("y", "pa"))
    path = save(trained_by(keras.optimizers.SGD, scrambled(old, 1)), tmp_path)
    refuse(dr.AmbiguousMatchError, trained_by(keras.optimizers.SGD, scrambled(new, 2)), path, "model/x/pb/kernel")


class Row(tf.Module):
    """Modules with names in a list."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.blocks = [Linear(bias=True, name=name) for name in names]


class RowOld(tf_keras.Model):
    """Layers of tf_keras with names in a list."""

    def __init__(self, *names: str) -> None:
        super().__init__(name="net")
        self.blocks = [tf_keras.layers.Dense(4, name=name) for name in names]
        self(tf.zeros((1, 4)))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("kind", [Row, RowOld])
def test_members_of_a_list_that_have_names_take_their_weights_along(kind: type, tmp_path: pathlib.Path) -> None:
    old, new = kind("enc", "mid", "dec"), kind("dec", "enc", "mid")
    for seed, model in enumerate((old, new)):
        scramble(model, seed=seed)
    restore(Checkpoint(model=new), save(Checkpoint(model=old), tmp_path))
    found = {block.name: block for block in new.blocks}
    for block in old.blocks:
        assert_all_hold(found[block.name].variables, values(block.variables))


@OPTIMIZERS
def test_a_bias_that_went_to_another_layer_without_a_name_is_refused(
    make: Callable[[], keras.Optimizer] | None, tmp_path: pathlib.Path
) -> None:
    """As many kernels and as many biases as before, but no layer of the first two is the same."""

    def program(*biases: bool) -> Checkpoint:
        return trained_by(make, stack(*(lambda b=b: Layers.Dense(4, use_bias=b) for b in biases)))

    path = save(program(False, True, False), tmp_path)
    refuse(dr.AmbiguousMatchError, program(True, False, False), path, "model/dense", "bias")
    restore(program(False, True, False), path)


# ---- Models without names --------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [False, True], ids=["alone", "adam"])
@pytest.mark.parametrize(
    ("before", "now"),
    [(("query", "document"), ("model",)), (("actor", "critic"), ("policy", "value")), (("model",), ("query", "key"))],
    ids=["two into one", "two of other names", "one into two"],
)
def test_counters_that_agree_by_chance_do_not_say_which_model_is_which(
    before: tuple[str, ...], now: tuple[str, ...], optimizer: bool, tmp_path: pathlib.Path
) -> None:
    def program(*names: str) -> Checkpoint:
        keras.backend.clear_session()
        models = {name: stack(lambda: Layers.Dense(4), lambda: Layers.Dense(4)) for name in names}
        return with_adam(**models) if optimizer else Checkpoint(**models)

    path = save(program(*before), tmp_path)
    refuse(dr.UnmatchedError, program(*now), path, *(f"{name}/dense" for name in now))
    restore(program(*before), path)


# ---- Blocks whose names are exchanged, with several layers inside ------------------------------------------


class Couple(keras.layers.Layer):
    """A block with a name, and two layers inside that have none."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name)
        self.fc, self.out = Layers.Dense(4), Layers.Dense(4)

    def build(self, shape: Sequence[int | None]) -> None:
        self.fc.build(shape)
        self.out.build(shape)
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.out(self.fc(x))


class Two(keras.Model):
    """Two such blocks under attributes."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(name="two")
        self.first, self.second = Couple(first), Couple(second)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.second(self.first(x))


def two(first: str, second: str) -> keras.Model:
    model = Two(first, second)
    model(tf.zeros((1, 4)))
    return model


def test_blocks_that_exchanged_their_attributes_are_refused(tmp_path: pathlib.Path) -> None:
    path = save(trained_by(keras.optimizers.Adam, scrambled(two("enc", "dec"), 1)), tmp_path)
    new = trained_by(keras.optimizers.Adam, scrambled(two("dec", "enc"), 2))
    refuse(dr.AmbiguousMatchError, new, path, "model/first/fc/kernel", "'model/second' holds")


def test_blocks_that_exchanged_their_attributes_are_refused_in_files_of_weights(tmp_path: pathlib.Path) -> None:
    old, path = scrambled(two("enc", "dec"), 1), str(tmp_path / "two.weights.h5")
    old.save_weights(path)
    refuse(dr.AmbiguousMatchError, scrambled(two("dec", "enc"), 2), path, "first/fc/kernel", "called 'dec' itself")
    same = scrambled(two("enc", "dec"), 3)
    restore(same, path)
    assert_all_hold(same.variables, values(old.variables))


# ---- A part that is called as the root is ------------------------------------------------------------------


class Nested(tf.Module):
    """Holds modules under one attribute, some deep."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.fc = tf.Variable(tf.fill((4, 4), float(depth)))
        if depth:
            self.model = Nested(depth - 1)


@pytest.mark.parametrize("unmatched", ["error", "keep"])
def test_a_part_that_is_called_as_the_root_is_is_not_taken_for_it(unmatched: str, tmp_path: pathlib.Path) -> None:
    old, new = Nested(2), Nested(2)
    scramble(old, seed=1)
    scramble(new, seed=2)
    path = save(Checkpoint(net=old), tmp_path)
    restore(Checkpoint(model=new), path, unmatched=unmatched)
    assert_all_hold(new.variables, values(old.variables))


class Stem(keras.layers.Layer):
    """A layer of a class of the user's, with a name that Keras makes up, around one that has a name."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.norm = Layers.LayerNormalization(name="norm")

    def build(self, shape: Sequence[int | None]) -> None:
        self.norm.build(shape)
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.norm(x)


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_an_automatic_name_of_a_users_class_says_nothing_in_a_file(suffix: str, tmp_path: pathlib.Path) -> None:
    def program(seed: int) -> keras.Model:
        inputs = keras.Input((4,))
        return scrambled(keras.Model(inputs, Layers.LayerNormalization(name="norm")(Stem()(inputs))), seed)

    old, path = program(1), str(tmp_path / f"net{suffix}")
    (old.save if suffix == ".keras" else old.save_weights)(path)
    for clear in (False, True):
        if clear:
            keras.backend.clear_session()
        new = program(2)
        restore(Checkpoint(model=new), path)
        assert_all_hold(new.variables, values(old.variables))
