# The floors stand in `python_floors` alone; tests hold pyproject.toml and the README to them. Flax: `nnx.capture()`. Keras: the
# first release whose files cannot link to others (HDF5 external storage).
python_floors <- c(flax = "0.12.6", jax = "0.8.1", keras = "3.13.2")

.onLoad <- function(libname, pkgname) {
  reticulate::py_require(paste0(names(python_floors), ">=", python_floors))
  choose_backend()
  load_core(system.file("python", package = pkgname, lib.loc = libname))
  # `load_model()` must know the layer. If Python has no Flax, the error comes when a layer is made.
  reticulate::py_register_load_hook("keras", \() try(core_function("FlaxLayer"), silent = TRUE))
}

.onAttach <- function(libname, pkgname) {
  packageStartupMessage(
    "kerasflax: layer_flax_module_wrapper() and save_model() take the place of keras3's."
  )
}
