# `plot()` for what `fit()` returns. keras3's method asks for TensorFlow's version, to find out
# whether the history has validation, and fails without TensorFlow. (Seen with keras3 1.5.1; no
# upstream issue was found.)

# keras3's own method, in which TensorFlow has a version since 2.2: the history itself then tells.
plot_history <- function(x, ...) {
  method <- keras3_plot_history()
  environment(method) <- rlang::env(
    asNamespace("keras3"),
    `::` = function(package, name) {
      name <- as.character(substitute(name))
      if (name == "tf_version") {
        \() numeric_version("2.20")
      } else {
        getExportedValue(as.character(substitute(package)), name)
      }
    }
  )
  method(x, ...)
}

keras3_plot_history <- function() {
  get0("plot.keras_training_history", asNamespace("keras3"), mode = "function")
}

# Registered when the package is loaded: in NAMESPACE, R would report at each `library(kerasflax)`
# that the method replaces another.
register_plot_history <- function() {
  if (!is.null(keras3_plot_history())) {
    registerS3method("plot", "keras_training_history", plot_history)
  }
}
