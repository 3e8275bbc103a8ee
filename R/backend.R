# Keras's backend: JAX, where it has been left open.

# keras3 sets KERAS_BACKEND to "tensorflow" when it is loaded and finds nothing there. As long as Keras itself is not
# loaded, this value is therefore no choice of the user's.
choose_backend <- function() {
  if (!is_keras_loaded() && Sys.getenv("KERAS_BACKEND") %in% c("", "tensorflow")) {
    use_backend("jax")
  }
}

check_backend <- function(call = caller_env()) {
  backend <- if (is_keras_loaded()) config_backend() else Sys.getenv("KERAS_BACKEND")
  if (backend == "jax") {
    return(invisible())
  }
  abort_kerasflax(
    c(
      "A Flax module needs Keras on the JAX backend.",
      x = "Keras runs on {.val {backend}}.",
      i = "Restart R, and run {.code library(kerasflax)} before Keras is used and without choosing another backend."
    ),
    cause = "backend",
    call = call
  )
}

is_keras_loaded <- function() {
  reticulate::py_available() && reticulate::py_eval("'keras' in __import__('sys').modules")
}
