# Keras's backend: JAX, unless the user chose another one.

# Loading keras3 sets KERAS_BACKEND to "tensorflow" if the variable is empty. Until Keras itself is
# loaded, this value is therefore not the user's choice.
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
      "Flax modules require Keras on the JAX backend.",
      x = "Keras runs on {.val {backend}}.",
      i = "Restart R and run {.code library(kerasflax)} before you use Keras, without choosing \
      another backend."
    ),
    cause = "backend",
    call = call
  )
}

is_keras_loaded <- function() {
  reticulate::py_available() && reticulate::py_eval("'keras' in __import__('sys').modules")
}
