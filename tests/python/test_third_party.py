"""Modules from other packages: transformers, brax, ott, e3x, flaxmodels, and jraph with Flax.

Nothing else needs these packages. A case is skipped if its package is missing, or if the package
uses names that JAX or Flax no longer have. To run all cases, use a separate environment:

    pip install '.[test]' transformers==4.57.6 brax e3x ott-jax diffrax jraph flaxmodels
    python -m pytest tests/python/test_third_party.py
"""

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import linen as nn

from kerasflax import FlaxLayer
from kerasflax.bridge._forms import split
from kerasflax.bridge._variables import named_leaves

# The packages are older than JAX, which warns about them. kerasflax's own warnings have other
# classes and stay errors. Keras warns that it cannot use the name that brax gives to images.
pytestmark = [
    *(
        pytest.mark.filterwarnings(f"ignore::{category}")
        for category in (
            "DeprecationWarning",
            "FutureWarning",
            "PendingDeprecationWarning",
            "SyntaxWarning",
        )
    ),
    pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict:UserWarning:keras"),
]

PyTree = Any
BATCH, LENGTH = 4, 6
OTHER_BATCH, OTHER_LENGTH = 5, 9
SEED = 3


@dataclasses.dataclass(frozen=True)
class Case:
    """A module from another package.

    Attributes:
        package: The package that must be installed.
        build: From the imported modules to the Flax module.
        inputs: From a batch size and a length to a pytree of arrays, as a user would pass it. A
            Keras input must know the axes that depend on neither.
        imports: The dotted paths of the modules that `build` gets. By default `package` alone.
        arguments: From the inputs to the positional and keyword arguments of plain `apply`.
        method: The layer's `method`, for a module whose arguments a call cannot fill.
        mode: The mode argument of plain `apply` and its value at inference. None if there is none.
        draws: Whether the module draws random numbers in training.
        output: From the outputs to the array on which a model is trained.
        streams: The streams that plain `init` needs in addition to `params`.
        tolerance: The tolerance of the outputs, relative to the largest one.
    """

    package: str
    build: Callable[..., nn.Module]
    inputs: Callable[[int, int], PyTree]
    imports: tuple[str, ...] = ()
    arguments: Callable[[PyTree], tuple[tuple[Any, ...], dict[str, Any]]] = lambda inputs: (
        (inputs,),
        {},
    )
    method: Callable[..., Any] | None = None
    mode: tuple[str, bool] | None = None
    draws: bool = False
    output: Callable[[PyTree], Any] = lambda outputs: outputs
    streams: tuple[str, ...] = ()
    tolerance: float = 1e-5

    def load(self):
        try:
            pytest.importorskip(self.package, reason=f"{self.package} is not installed")
            loaded = [importlib.import_module(path) for path in self.imports or (self.package,)]
        except Exception as error:
            pytest.skip(f"{self.package} cannot be imported with JAX {jax.__version__}: {error!r}")
        module = self.build(*loaded)
        try:
            self.init(module)
        except (AttributeError, ImportError, NotImplementedError) as error:
            pytest.skip(f"plain Flax cannot run it with JAX {jax.__version__}: {error!r}")
        return module

    def keywords(self):
        return dict([self.mode]) if self.mode else {}

    def init(self, module):
        arguments, keywords = self.arguments(self.inputs(BATCH, LENGTH))
        rngs = dict.fromkeys(("params", *self.streams), jax.random.key(SEED))
        return jax.eval_shape(lambda: module.init(rngs, *arguments, **keywords, **self.keywords()))

    def apply(self, module, variables, inputs):
        """The outputs of plain Flax at inference."""

        def run(variables, inputs):
            arguments, keywords = self.arguments(inputs)
            rngs = dict.fromkeys(self.streams, jax.random.key(SEED))
            mutable = nn.DenyList(["params"])
            return module.apply(
                variables, *arguments, rngs=rngs, mutable=mutable, **keywords, **self.keywords()
            )[0]

        return jax.jit(run)(variables, inputs)


def floats(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def integers(*shape, below=50):
    return np.random.default_rng(0).integers(1, below, shape).astype(np.int32)


def images(size=16):
    return lambda batch, length: floats(batch, size, size, 3)


def vectors(size):
    return lambda batch, length: floats(batch, size)


def tokens(*names):
    """Text as the tokenizers of `transformers` return it, with positions if `names` has them."""

    def inputs(batch, length):
        parts = {
            "position_ids": np.broadcast_to(
                np.arange(length, dtype=np.int32), (batch, length)
            ).copy(),
            "type_ids": np.zeros((batch, length), np.int32),
            "ids": integers(batch, length),
            "mask": np.ones((batch, length), np.int32),
        }
        return {name: next(x for end, x in parts.items() if name.endswith(end)) for name in names}

    return inputs


def spread(inputs):
    return (), inputs


def listed(inputs):
    return tuple(inputs), {}


def hugging_face(model, name, config, inputs, sizes, **options):
    """A module of `transformers`, from the names of its class and its config, and its sizes."""
    is_dict = isinstance(inputs(1, 1), dict)
    return Case(
        "transformers",
        lambda modeling, package: getattr(modeling, name)(getattr(package, config)(**sizes)),
        inputs,
        imports=(f"transformers.models.{model}.modeling_flax_{model}", "transformers"),
        **{
            "arguments": spread if is_dict else Case.arguments,
            "mode": ("deterministic", True),
            "draws": True,
        }
        | options,
    )


HIDDEN = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
TEXT = HIDDEN | {"vocab_size": 60, "max_position_embeddings": 32}
IMAGE = HIDDEN | {"image_size": 16, "patch_size": 8}
POSITIONED = tokens("input_ids", "attention_mask", "position_ids")
TYPED = tokens("input_ids", "attention_mask", "token_type_ids", "position_ids")


def last(outputs):
    return outputs["last_hidden_state"]


class GraphNetwork(nn.Module):
    """A graph network like those in jraph's examples for Flax."""

    @nn.compact
    def __call__(self, graph):
        import jraph

        def update(size):
            return jraph.concatenated_args(lambda inputs: nn.relu(nn.Dense(size)(inputs)))

        graph = graph._replace(globals=jnp.zeros((graph.n_node.shape[0], 1)))
        graph = jraph.GraphMapFeatures(nn.Dense(8), nn.Dense(8), nn.Dense(8))(graph)
        return jraph.GraphNetwork(update(8), update(8), update(2))(graph)


class Attention(nn.Module):
    """Graph attention, for which the user of jraph defines the networks."""

    @nn.compact
    def __call__(self, graph):
        import jraph

        return jraph.GAT(
            attention_query_fn=lambda nodes: nn.Dense(8)(nodes),
            attention_logit_fn=lambda sent, received, edges: nn.Dense(1)(
                jnp.concatenate((sent, received), axis=-1)
            ),
            node_update_fn=lambda nodes: nn.Dense(4)(nodes),
        )(graph).nodes


def graphs(batch, length):
    """One graph with `batch` nodes.

    `globals` is an array, because Keras models do not accept None, which jraph allows.
    """
    import jraph

    return jraph.GraphsTuple(
        nodes=floats(batch, 5),
        edges=floats(2 * batch, 3),
        senders=np.arange(2 * batch, dtype=np.int32) % batch,
        receivers=np.arange(2 * batch, dtype=np.int32) // 2,
        n_node=np.array([batch], np.int32),
        n_edge=np.array([2 * batch], np.int32),
        globals=np.zeros((1, 1), np.float32),
    )


def messages(batch, length):
    """Features of three atoms and of their pairs, in the shapes of e3x."""
    others = np.array([[1, 2], [0, 2], [0, 1]], np.int32)
    return {
        "inputs": floats(batch, 3, 1, 4, 8),
        "basis": floats(batch, 3, 2, 1, 4, 5),
        "adj_idx": np.broadcast_to(others, (batch, 3, 2)).copy(),
    }


CASES = {
    "transformers: Bert": hugging_face(
        "bert", "FlaxBertModule", "BertConfig", TYPED, TEXT, output=last
    ),
    "transformers: Bert, a classifier": hugging_face(
        "bert",
        "FlaxBertForSequenceClassificationModule",
        "BertConfig",
        TYPED,
        TEXT,
        arguments=lambda inputs: ((), {**inputs, "head_mask": None}),
        method=lambda module, inputs, deterministic: module(
            **inputs, head_mask=None, deterministic=deterministic
        ),
        output=lambda outputs: outputs["logits"],
    ),
    "transformers: Roberta": hugging_face(
        "roberta",
        "FlaxRobertaModule",
        "RobertaConfig",
        TYPED,
        TEXT | {"max_position_embeddings": 40},
        output=last,
    ),
    "transformers: DistilBert": hugging_face(
        "distilbert",
        "FlaxDistilBertModule",
        "DistilBertConfig",
        tokens("input_ids", "attention_mask"),
        {
            "vocab_size": 60,
            "dim": 16,
            "n_layers": 1,
            "n_heads": 2,
            "hidden_dim": 32,
            "max_position_embeddings": 32,
        },
        output=last,
    ),
    "transformers: GPT2": hugging_face(
        "gpt2",
        "FlaxGPT2LMHeadModule",
        "GPT2Config",
        POSITIONED,
        {"vocab_size": 60, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32},
        output=lambda outputs: outputs["logits"],
    ),
    "transformers: Llama": hugging_face(
        "llama",
        "FlaxLlamaModule",
        "LlamaConfig",
        POSITIONED,
        TEXT | {"num_key_value_heads": 1},
        draws=False,
        output=last,
    ),
    "transformers: T5": hugging_face(
        "t5",
        "FlaxT5Module",
        "T5Config",
        tokens("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask"),
        {
            "vocab_size": 60,
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 32,
            "num_layers": 1,
            "num_heads": 2,
            "decoder_start_token_id": 0,
        },
        output=last,
    ),
    "transformers: Bart": hugging_face(
        "bart",
        "FlaxBartModule",
        "BartConfig",
        tokens(
            "input_ids",
            "attention_mask",
            "position_ids",
            "decoder_input_ids",
            "decoder_attention_mask",
            "decoder_position_ids",
        ),
        {
            "vocab_size": 60,
            "d_model": 16,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "max_position_embeddings": 32,
        },
        output=last,
    ),
    "transformers: ViT": hugging_face(
        "vit",
        "FlaxViTForImageClassificationModule",
        "ViTConfig",
        images(),
        IMAGE | {"hidden_dropout_prob": 0.1},
        output=lambda outputs: outputs["logits"],
    ),
    "transformers: Dinov2": hugging_face(
        "dinov2",
        "FlaxDinov2Module",
        "Dinov2Config",
        images(),
        IMAGE | {"intermediate_size": 64, "hidden_dropout_prob": 0.1},
        output=last,
    ),
    "transformers: CLIP's images": hugging_face(
        "clip",
        "FlaxCLIPVisionModule",
        "CLIPVisionConfig",
        images(),
        IMAGE | {"attention_dropout": 0.1},
        output=lambda outputs: outputs["pooler_output"],
    ),
    "transformers: ResNet": hugging_face(
        "resnet",
        "FlaxResNetModule",
        "ResNetConfig",
        images(),
        {"embedding_size": 4, "hidden_sizes": [4], "depths": [1]},
        draws=False,
        output=lambda outputs: outputs["pooler_output"],
    ),
    "transformers: Wav2Vec2": hugging_face(
        "wav2vec2",
        "FlaxWav2Vec2Module",
        "Wav2Vec2Config",
        lambda batch, length: floats(batch, 20 * length),
        HIDDEN
        | {
            "vocab_size": 60,
            "conv_dim": (8, 8),
            "conv_stride": (5, 2),
            "conv_kernel": (10, 3),
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
            "mask_time_prob": 0.0,
            "do_stable_layer_norm": True,
            "feat_extract_norm": "layer",
        },
        output=lambda outputs: outputs[0],
        tolerance=1e-4,
    ),
    "brax: MLP": Case(
        "brax",
        lambda networks: networks.MLP([8, 4], layer_norm=True),
        vectors(6),
        imports=("brax.training.networks",),
    ),
    "brax: SNMLP, with state of its own": Case(
        "brax",
        lambda networks: networks.SNMLP([8, 4]),
        vectors(6),
        imports=("brax.training.networks",),
        streams=("sing_vec",),
    ),
    "brax: VisionMLP, of a dict": Case(
        "brax",
        lambda networks: networks.VisionMLP([8, 4], state_obs_key="state"),
        lambda batch, length: {
            "pixels/view_0": floats(batch, 16, 16, 3),
            "state": floats(batch, 5),
        },
        imports=("brax.training.networks",),
    ),
    "brax: PolicyModuleWithStd, two outputs": Case(
        "brax",
        lambda networks: networks.PolicyModuleWithStd(
            3, [8], nn.swish, nn.initializers.lecun_uniform(), False, "log", 1.0
        ),
        vectors(6),
        imports=("brax.training.networks",),
        output=lambda outputs: outputs[0],
    ),
    "ott: ICNN": Case(
        "ott",
        lambda icnn: icnn.ICNN(dim_data=4, dim_hidden=[8, 8], act_fn=nn.softplus),
        vectors(4),
        imports=("ott.neural.networks.icnn",),
    ),
    "ott: PotentialMLP": Case(
        "ott",
        lambda potentials: potentials.PotentialMLP(dim_hidden=[8, 8]),
        vectors(4),
        imports=("ott.neural.networks.potentials",),
    ),
    "e3x: TensorDense": Case(
        "e3x",
        lambda e3x: e3x.nn.TensorDense(features=4, max_degree=1),
        lambda batch, length: floats(batch, 1, 4, 6),
    ),
    "e3x: MessagePass": Case(
        "e3x", lambda e3x: e3x.nn.MessagePass(), messages, arguments=spread, tolerance=1e-4
    ),
    "flaxmodels: StyleGAN2's discriminator": Case(
        "flaxmodels",
        lambda flaxmodels: flaxmodels.stylegan2.Discriminator(
            resolution=8, fmap_base=32, fmap_max=8, mbstd_group_size=1
        ),
        images(8),
        tolerance=1e-4,
    ),
    "flaxmodels: StyleGAN2's mapping": Case(
        "flaxmodels",
        lambda flaxmodels: flaxmodels.stylegan2.MappingNetwork(8, 0, 8, 0, 8, 4, 2),
        vectors(8),
        mode=("train", False),
    ),
    "jraph: GraphNetwork": Case(
        "jraph", lambda jraph: GraphNetwork(), graphs, output=lambda outputs: outputs.nodes
    ),
    "jraph: GAT": Case("jraph", lambda jraph: Attention(), graphs),
}

if not any(importlib.util.find_spec(case.package) for case in CASES.values()):
    pytest.skip("none of the packages with modules to wrap is installed", allow_module_level=True)


@dataclasses.dataclass(frozen=True)
class Wrapped:
    """The layer of a case, built by a symbolic call."""

    case: Case
    module: nn.Module
    layer: FlaxLayer
    inputs: PyTree
    outputs: PyTree

    def model(self):
        return keras.Model(self.inputs, self.outputs)

    def apply(self, variables, inputs):
        return self.case.apply(self.module, variables, inputs)


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES.keys())
def wrapped(request):
    case = request.param
    with pytest.MonkeyPatch.context() as patch:
        restore_old_argument_names(patch)
        module = case.load()
        layer = FlaxLayer(module, method=case.method, seed=SEED)
        inputs = keras_inputs(case)
        yield Wrapped(case, module, layer, inputs, layer(inputs))


def restore_old_argument_names(patch):
    """Restore argument names that transformers 4.57 (T5) and flaxmodels use but JAX has removed."""
    for function, old, new in (("clip", "a_max", "max"), ("reshape", "newshape", "shape")):
        patch.setattr(jnp, function, renaming(getattr(jnp, function), old, new))


def renaming(function, old, new):
    return lambda *args, **keywords: function(
        *args, **{new if name == old else name: x for name, x in keywords.items()}
    )


def keras_inputs(case):
    """Keras inputs, with unknown sizes for the axes that depend on the batch or the length."""

    def tensor(path, x, y):
        shape = [a if a == b else None for a, b in zip(x.shape, y.shape, strict=True)]
        name = getattr(path[-1], "key", None) if path else None
        return keras.Input(
            batch_shape=shape,
            dtype=str(x.dtype),
            name=None if name is None or "/" in name else name,
        )

    return jax.tree_util.tree_map_with_path(
        tensor, case.inputs(BATCH, LENGTH), case.inputs(OTHER_BATCH, OTHER_LENGTH)
    )


def arrays(tree):
    return named_leaves({"out": split(tree)[1]})


def assert_same(got, expected, tolerance):
    got, expected = arrays(got), arrays(expected)
    assert got.keys() == expected.keys()
    for path in expected:
        scale = max(1.0, float(np.max(np.abs(expected[path]), initial=0.0)))
        np.testing.assert_allclose(
            got[path], expected[path], rtol=0, atol=tolerance * scale, err_msg=path
        )


def is_same(left, right):
    left, right = arrays(left), arrays(right)
    return all(np.array_equal(left[path], right[path]) for path in left)


def test_the_output_spec_has_the_shapes_of_the_outputs(wrapped):
    case, outputs = wrapped.case, {}
    for sizes in ((BATCH, LENGTH), (OTHER_BATCH, OTHER_LENGTH)):
        variables = wrapped.layer.flax_variables
        run = jax.eval_shape(wrapped.apply, variables, case.inputs(*sizes))
        for path, output in arrays(run).items():
            outputs.setdefault(path, []).append(output.shape)
    specs = {path: tuple(spec.shape) for path, spec in arrays(wrapped.outputs).items()}
    assert specs == {
        path: tuple(a if a == b else None for a, b in zip(*shapes, strict=True))
        for path, shapes in outputs.items()
    }


def test_outputs_equal_those_of_plain_apply(wrapped):
    case = wrapped.case
    inputs = case.inputs(BATCH, LENGTH)
    variables = wrapped.layer.flax_variables
    outputs = wrapped.layer(inputs)
    expected = wrapped.apply(variables, inputs)
    assert type(outputs) is type(expected)
    assert_same(outputs, expected, case.tolerance)


def test_a_model_predicts_with_another_batch_size(wrapped):
    inputs = wrapped.case.inputs(OTHER_BATCH, OTHER_LENGTH)
    expected = wrapped.apply(wrapped.layer.flax_variables, inputs)
    assert_same(wrapped.model().predict_on_batch(inputs), expected, wrapped.case.tolerance)


def test_training_steps_change_the_weights(wrapped):
    case, layer = wrapped.case, wrapped.layer
    output = case.output(wrapped.outputs)
    features = (
        keras.ops.mean(output, axis=tuple(range(1, len(output.shape) - 1)))
        if len(output.shape) > 2
        else output
    )
    predictions = keras.layers.Dense(1)(features if len(output.shape) > 1 else features[:, None])
    model = keras.Model(wrapped.inputs, predictions)
    model.compile("adam", "mse")
    before = [np.asarray(variable) for variable in layer.trainable_variables]
    losses = [model.train_on_batch(case.inputs(BATCH, LENGTH), floats(BATCH, 1)) for _ in range(2)]
    assert np.isfinite(losses).all()
    moved = [
        not np.array_equal(a, b) for a, b in zip(before, layer.trainable_variables, strict=True)
    ]
    assert sum(moved) > len(moved) / 2


def test_training_draws_if_the_module_has_dropout_and_inference_never_draws(wrapped):
    inputs = wrapped.case.inputs(BATCH, LENGTH)
    variables = wrapped.layer.flax_variables

    def run(training):
        wrapped.layer.flax_variables = variables
        return wrapped.layer(inputs, training=training)

    assert is_same(run(False), run(False))
    assert is_same(run(True), run(True)) is not wrapped.case.draws
