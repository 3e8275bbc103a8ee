# The minimum versions. Tests check that pyproject.toml and the README state the same versions.
# Flax: `nnx.capture()`. Keras: the first release whose files cannot link to other files (HDF5
# external storage).
python_floors <- c(flax = "0.12.6", jax = "0.8.1", keras = "3.13.2")

.onLoad <- function(libname, pkgname) {
  reticulate::py_require(paste0(names(python_floors), ">=", python_floors))
  remember_backend()
  choose_backend()
  register_plot_history()
  register_model_methods()
  load_core(system.file("python", package = pkgname, lib.loc = libname))
  # `load_model()` must know the layer. Without Flax, the error is signaled when a layer is created.
  reticulate::py_register_load_hook("keras", \() try(core_function("FlaxLayer"), silent = TRUE))
}
