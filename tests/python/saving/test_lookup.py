import functools
import importlib
import json
import os
import sys

import flax
import hostile
import keras
import pytest
from flax import linen as nn
from samples import SETTINGS_PACKAGE, Holder, again
from support import run_code

from kerasflax import ConfigError
from kerasflax.saving import _allowed
from kerasflax.saving._from_json import from_config
from kerasflax.saving._to_json import to_config

# Module classes -----------------------------------------------------------------------------------


def test_a_new_process_finds_a_class_in_its_script_or_an_imported_package(tmp_path):
    (tmp_path / "netpackage.py").write_text(
        "from flax import linen as nn\n"
        "class Net(nn.Module):\n"
        "    units: int = 3\n"
        "    @nn.compact\n"
        "    def __call__(self, inputs):\n"
        "        return nn.Dense(self.units)(inputs)\n"
    )
    make = """
        import keras, numpy as np, kerasflax
        from kerasflax import FlaxLayer
        {define}
        model = keras.Sequential([keras.Input((4,)), FlaxLayer(Net(units=2), seed=3)])
        model.save({path!r})
        print(model.predict(np.ones((1, 4)), verbose=0).tolist())
    """
    load = """
        import keras, numpy as np, kerasflax
        {define}
        try:
            print(keras.models.load_model({path!r}).predict(np.ones((1, 4)), verbose=0).tolist())
        except kerasflax.ConfigError as error:
            print(error)
    """
    script = (tmp_path / "netpackage.py").read_text().replace("\n", "\n        ")
    for name, define in {"script": script, "package": "from netpackage import Net"}.items():
        path = str(tmp_path / f"{name}.keras")
        expected = run_code(
            make.format(define=define, path=path),
            PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]),
        )
        found = run_code(
            load.format(define=define, path=path),
            PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]),
        )
        assert found == expected
        missing = run_code(
            load.format(define="", path=path),
            PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]),
        )
        assert "'Net'" in missing
        assert ("import netpackage" if name == "package" else "the code that defines it") in missing


def test_the_newest_class_with_a_name_is_used_unless_custom_objects_has_one():
    def define(scale):
        class Net(nn.Module):
            def __call__(self, inputs):
                return inputs * scale

        return Net

    old, new = define(2), define(3)
    node = to_config(old(), "net")
    assert type(from_config(node, "net")) is new
    for custom in ({"Net": old}, {old.__qualname__: old}):
        with keras.saving.custom_object_scope(custom):
            assert type(from_config(node, "net")) is old
    with keras.saving.custom_object_scope({"Net": old}):
        assert type(from_config({"object": "elsewhere:Net"}, "net")) is old


def test_choosing_between_two_transformed_classes_of_one_name_warns():
    class Repeated(nn.Dense):
        pass

    def repeated(axis):
        return nn.vmap(
            Repeated,
            in_axes=axis,
            out_axes=axis,
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )

    old = repeated(1)
    node = to_config(old(3), "net")
    assert type(from_config(node, "net")) is old
    new = repeated(2)
    with pytest.warns(UserWarning, match="VmapRepeated.*created 2 classes"):
        assert type(from_config(node, "net")) is new
    with keras.saving.custom_object_scope({"VmapRepeated": old}):
        assert type(from_config(node, "net")) is old


def test_a_keras_layer_with_the_same_name_is_not_used_as_the_module():
    with keras.saving.custom_object_scope({"Holder": keras.layers.Dense}):
        assert type(again(Holder())) is Holder
        with pytest.raises(ConfigError, match="of another kind"):
            from_config({"object": "elsewhere:Holder"}, "it")


def test_the_class_that_holds_the_name_now_is_used_whatever_its_bases():
    class Base(nn.Module):
        pass

    def define(base):
        Redefined = type("Redefined", (base,), {"__module__": __name__})
        globals()["Redefined"] = Redefined
        return Redefined

    for base in (nn.Module, Base, nn.Module, Base):
        new = define(base)
        assert type(from_config({"object": f"{__name__}:Redefined"}, "net")) is new


def test_a_registered_class_is_found_by_its_registered_name_in_any_module():
    def define(place):
        body = {
            "__module__": place,
            "get_config": lambda self: {},
            "from_config": classmethod(lambda cls, config: cls()),
        }
        return keras.saving.register_keras_serializable("tests")(type("Known", (nn.Module,), body))

    old = define("somewhere")
    node = to_config([old(), functools.partial(old)], "net")
    new = define("elsewhere")
    module, partial = from_config(node, "net")
    assert type(module) is partial.func is new


# Dataclasses, named tuples and enums --------------------------------------------------------------


def test_a_dataclass_is_found_if_a_module_class_declares_it(tmp_path):
    (tmp_path / "settingspackage.py").write_text(SETTINGS_PACKAGE)
    make = """
        import json, keras, sys
        from kerasflax.saving import _from_json
        {}
        for node in json.loads({!r}):
            try:
                print(_from_json.from_config(node, "it"))
            except _from_json.ConfigError as error:
                print(error)
            assert ("settingspackage" in sys.modules) == {!r}
    """
    pair = {"named_tuple": "settingspackage:Pair", "fields": [1]}
    inner = {"object": "settingspackage:Inner", "fields": {"pair": pair}}
    nodes = [
        {"object": "settingspackage:Plain", "fields": {"width": 3, "inner": inner}},
        {"enum": "settingspackage:Kind", "member": "WIDE"},
        {"enum": "settingspackage:Level", "member": "LOW"},
        {"enum": "settingspackage:Bits", "member": "A"},
        {"object": "settingspackage:Node", "fields": {"rate": 1}},
        {"object": "settingspackage:Undeclared", "fields": {"width": 1}},
    ]
    path = os.pathsep.join([str(tmp_path), *sys.path])
    *found, refused, advice = run_code(
        make.format("import settingspackage", json.dumps(nodes), True), PYTHONPATH=path
    ).splitlines()
    assert found == [
        "Plain(width=3, kind=<Kind.WIDE: 1>, more=(), inner=Inner(pair=Pair(a=1)), parts={})",
        *("Kind.WIDE", "1", "Bits.A", "Node(rate=1)"),
    ]
    assert "no field of a module is declared to hold it" in refused
    assert "custom_objects={'Undeclared': Undeclared}" in advice
    assert "import settingspackage" in run_code(
        make.format("", json.dumps(nodes[:1]), False), PYTHONPATH=path
    )


@pytest.fixture(scope="module")
def acting(tmp_path_factory):
    """Return a package whose classes act, and the folder that they create."""
    folder = tmp_path_factory.mktemp("acting")
    mark = folder / "mark"
    (folder / "actingpackage.py").write_text(hostile.package_of(mark))
    sys.path.insert(0, str(folder))
    package = importlib.import_module("actingpackage")
    sys.path.remove(str(folder))
    return package, mark


def test_a_declared_class_is_refused_if_python_would_call_its_methods(acting):
    package, mark = acting
    assert len(package.KINDS) > 80
    for kind in package.KINDS:
        node = hostile.described(kind)
        for around in (
            node,
            {"object": "actingpackage:Declares", "fields": {"held": node}},
            {"set": [node]},
            [{"dict": [[node, 1]]}],
        ):
            with pytest.raises(
                ConfigError,
                match=r"runs its own code|function creates its default|invalid description",
            ) as error:
                from_config(around, "it")
            message = str(error.value)
            assert "custom_objects" in message or "invalid description" in message, kind
        assert not mark.exists(), kind
    # Custom objects are trusted.
    with keras.saving.custom_object_scope({"Data_post_init": package.Data_post_init}):
        from_config(hostile.described(package.Data_post_init), "it")
    assert mark.exists()
    mark.rmdir()


@pytest.mark.parametrize("method", ["__hash__", "__call__", "__post_init__", "__init__"])
def test_a_method_defined_on_a_command_line_does_not_count_as_generated(method, tmp_path):
    code = f"""
        import dataclasses, os, typing
        from flax import linen as nn
        from kerasflax import ConfigError
        from kerasflax.saving._from_json import from_config
        @dataclasses.dataclass
        class Acts:
            value: str
            def {method}(self, *args): os.mkdir({str(tmp_path / "mark")!r})
        class Net(nn.Module):
            acts: Acts
        try:
            from_config({{"object": "__main__:Acts", "fields": {{"value": "x"}}}}, "it")
        except ConfigError as error:
            print(error)
    """
    assert f"Python calls `{method}`" in run_code(code)
    assert not (tmp_path / "mark").exists()


# Names that load nothing --------------------------------------------------------------------------


def test_no_main_module_of_a_package_is_run(tmp_path, monkeypatch):
    (tmp_path / "programpackage").mkdir()
    (tmp_path / "programpackage/__init__.py").write_text(
        "from flax import linen as nn\nclass Net(nn.Module): pass\n"
    )
    (tmp_path / "programpackage/more.py").write_text(
        "from flax import linen as nn\nclass Other(nn.Module): pass\n"
    )
    (tmp_path / "programpackage/__main__.py").write_text(
        f"import os\nos.mkdir({str(tmp_path / 'mark')!r})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("programpackage")
    with pytest.raises(ConfigError, match=r"Run `import programpackage\.more`, or"):
        from_config({"object": "programpackage.more:Other"}, "it")
    assert "programpackage.more" not in sys.modules
    with pytest.raises(ConfigError, match=r"not imported.\nRun the code"):
        from_config({"object": "programpackage.__main__:Net"}, "it")
    importlib.import_module("programpackage.more")
    assert type(from_config({"object": "programpackage.more:Other"}, "it")).__name__ == "Other"
    assert not (tmp_path / "mark").exists()


def test_no_error_advises_to_import_a_module_that_is_imported_or_in_the_standard_library():
    for name in ("os:Net", "antigravity:Net", f"{__name__}:Net"):
        with pytest.raises(ConfigError, match="does not have") as caught:
            from_config({"object": name}, "it")
        assert "import" not in str(caught.value)


def test_no_name_in_a_file_imports_anything(tmp_path, monkeypatch):
    (tmp_path / "lazypackage").mkdir()
    (tmp_path / "lazypackage/__init__.py").write_text(
        "from flax import linen as nn\n"
        "class Net(nn.Module): pass\n"
        "def __getattr__(name):\n"
        "    import importlib\n"
        "    return importlib.import_module(f'lazypackage.{name}')\n"
    )
    (tmp_path / "lazypackage/sub.py").write_text(
        f"import os\nos.mkdir({str(tmp_path / 'mark')!r})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("lazypackage")
    before = set(sys.modules)
    names = (
        "lazypackage.sub:Nope",
        "lazypackage:sub",
        "lazypackage:sub.Nope",
        "lazypackage:Net.sub",
        "numpy:matlib",
        "numpy:f2py",
    )
    for name in names:
        for node in (
            *(
                {kind: name}
                for kind in (
                    "object",
                    "type",
                    "function",
                    "initializer",
                    "constructor",
                    "custom",
                    "enum",
                )
            ),
            {"enum": name, "member": "A"},
            {"named_tuple": name, "fields": []},
            {"registered": name},
            {"partial": {"type": name}},
        ):
            with pytest.raises(ConfigError) as error:
                from_config(node, "it")
            if name == "lazypackage.sub:Nope" and {"object", "type", "constructor"} & node.keys():
                assert "`import lazypackage.sub`" in str(error.value)
    assert not (tmp_path / "mark").exists()
    assert set(sys.modules) == before


def test_a_file_may_name_only_listed_classes_of_flax():
    nnx = importlib.import_module("flax.nnx")
    for kind in (
        nnx.GraphDef,
        nnx.OfType,
        nnx.Variable,
        nnx.Rngs,
        nn.Module,
        nnx.Module,
        flax.struct.PyTreeNode,
    ):
        for form in ("object", "type", "constructor", "named_tuple", "enum"):
            with pytest.raises(ConfigError):
                from_config(
                    {
                        form: f"{kind.__module__}:{kind.__qualname__}",
                        **({"member": "A"} if form == "enum" else {}),
                    },
                    "it",
                )


def test_a_file_may_name_only_listed_classes_of_any_package_in_the_list(tmp_path, monkeypatch):
    (tmp_path / "systempackage.py").write_text(
        "from flax import linen as nn\n"
        "class Listed(nn.Module):\n    pass\n"
        "class Other(nn.Module):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    package = importlib.import_module("systempackage")
    listed, other = ({"object": f"systempackage:{name}"} for name in ("Listed", "Other"))
    assert type(from_config(other, "it")) is package.Other
    monkeypatch.setitem(_allowed.MODULES, "systempackage", "Listed")
    assert type(from_config(listed, "it")) is package.Listed
    with pytest.raises(ConfigError, match="which a file may not name"):
        from_config(other, "it")
