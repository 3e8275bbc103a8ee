# The first example on the help page of keras3's layer_flax_module_wrapper(), as a user runs it, for
# tools/cran-user. Python comes from py_require(), and no backend was selected.
library(kerasflax)
library(reticulate)

flax <- import("flax")

MyFlaxModule(flax$linen$Module) %py_class% {
  `__call__` <- flax$linen$compact(\(self, inputs) {
    inputs |>
      (flax$linen$Conv(features = 32L, kernel_size = tuple(3L, 3L)))() |>
      flax$linen$relu() |>
      flax$linen$avg_pool(window_shape = tuple(2L, 2L), strides = tuple(2L, 2L)) |>
      # flatten all except batch_size axis
      (\(x) x$reshape(tuple(x$shape[[1]], -1L)))() |>
      (flax$linen$Dense(features = 200L))() |>
      flax$linen$relu() |>
      (flax$linen$Dense(features = 10L))() |>
      flax$linen$softmax()
  })
}

# typical usage:
input <- keras_input(c(28, 28, 3))
output <- input |>
  layer_flax_module_wrapper(MyFlaxModule())

model <- keras_model(input, output)
print(model)

imported <- py_eval("'tensorflow' in __import__('sys').modules")
stopifnot(
  "the model has three kernels and their biases" = length(model$weights) == 6,
  "Keras runs on JAX" = config_backend() == "jax",
  "TensorFlow is not imported" = !imported,
  "Python is the one that uv created" = grepl("/uv/", py_exe())
)
