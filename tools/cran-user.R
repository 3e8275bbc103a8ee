# The README's example as a user runs it, for tools/cran-user: Python comes through py_require(); no backend was chosen.
library(kerasflax)

flax <- reticulate::import("flax")
nn <- flax$linen

MyFlaxModule(nn$Module) %py_class% {
  `__call__` <- nn$compact(\(self, inputs, training = FALSE) {
    inputs |> (nn$Dense(10L))()
  })
}

input <- keras_input(c(4))
output <- input |> layer_flax_module_wrapper(MyFlaxModule())
model <- keras_model(input, output)
print(model)

imported <- reticulate::py_eval("'tensorflow' in __import__('sys').modules")
stopifnot(
  "the model has a kernel and a bias" = length(model$weights) == 2,
  "Keras runs on JAX" = config_backend() == "jax",
  "TensorFlow is not imported" = !imported,
  "Python is the one that uv made" = grepl("/uv/", reticulate::py_exe())
)
