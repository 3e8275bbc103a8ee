# The floors stand in `python_floors` alone; tests hold pyproject.toml and the README to them. Flax: `nnx.capture()`. Keras: the
# first release whose files cannot link to others (HDF5 external storage).
python_floors <- c(flax = "0.12.6", jax = "0.8.1", keras = "3.13.2")

.onLoad <- function(libname, pkgname) {
  reticulate::py_require(paste0(names(python_floors), ">=", python_floors))
  choose_backend()
  the$core <- reticulate::import_from_path(
    "kerasflax",
    path = system.file("python", package = pkgname, lib.loc = libname),
    delay_load = list(on_load = register_r)
  )
  # Where Python has been started before, nothing is delayed, and reticulate leaves the hook out.
  if (reticulate::py_available()) {
    register_r()
  }
  # So that `load_model()` knows the layer. A Python without Flax has its say when a layer is made.
  reticulate::py_register_load_hook("keras", \() try(the$core$FlaxLayer, silent = TRUE))
}

.onAttach <- function(libname, pkgname) {
  packageStartupMessage("kerasflax: layer_flax_module_wrapper() and save_model() take the place of keras3's.")
}

# Tells the core how R functions and errors are to be understood, where functions are found by name, and what R's words are.
register_r <- function() {
  the$core$`_host`$register(r_formals, r_advice, r_method_of_name, r_name_of_method, in_r_words)
}
