# The CNN of modules.py written in R, for worker.py. `Rscript r_cnn.R <contender> <measure>` prints
# lines of JSON. The measure `entries` counts how often the R method runs.
library(kerasflax)
folder <- dirname(normalizePath(sub("^--file=", "", grep("^--file=", commandArgs(), value = TRUE))))
arguments <- commandArgs(trailingOnly = TRUE)
worker <- reticulate::import_from_path("worker", folder)
nn <- reticulate::import("flax.linen")
tuple <- reticulate::tuple
counter <- new.env()
counter$entries <- 0L

RCNN(nn$Module) %py_class% {
  `__call__` <- nn$compact(\(self, inputs, training = FALSE) {
    counter$entries <- counter$entries + 1L
    x <- inputs
    for (features in c(32L, 64L)) {
      x <- nn$relu((nn$Conv(features, tuple(3L, 3L)))(x))
      x <- nn$avg_pool(x, tuple(2L, 2L), strides = tuple(2L, 2L))
    }
    x <- x$reshape(tuple(x$shape[[1]], -1L))
    x <- nn$relu((nn$Dense(256L))(x))
    (nn$Dense(10L))(x)
  })
}

count_entries <- function() {
  entries_of <- function(code) {
    before <- counter$entries
    force(code)
    counter$entries - before
  }
  x <- array(rnorm(64 * 28 * 28), c(64, 28, 28, 1))
  y <- rep(0:9, length.out = 64)
  rows <- \(n) x[seq_len(n), , , , drop = FALSE]
  model <- NULL
  build <- entries_of({
    input <- keras_input(c(28, 28, 1))
    model <- keras_model(input, layer_flax_module_wrapper(input, RCNN()))
    loss <- loss_sparse_categorical_crossentropy(from_logits = TRUE)
    compile(model, optimizer = "sgd", loss = loss)
  })
  fit_rows <- \(n) fit(model, rows(n), y[seq_len(n)], batch_size = 32, epochs = 1, verbose = 0)
  counts <- list(
    build = build,
    first_step = entries_of(fit_rows(32)),
    two_more_steps = entries_of(fit_rows(64)),
    step_of_other_batch = entries_of(fit_rows(16)),
    first_predict = entries_of(predict(model, rows(32), verbose = 0)),
    second_predict = entries_of(predict(model, rows(32), verbose = 0)),
    predict_of_other_batch = entries_of(predict(model, rows(16), verbose = 0))
  )
  paste0("{", paste0("\"", names(counts), "\": ", unlist(counts), collapse = ", "), "}")
}

layer <- \() layer_flax_module_wrapper(module = RCNN(), seed = 0)
if (arguments[[2]] == "entries") {
  writeLines(count_entries())
} else {
  worker$run("r-cnn", arguments[[1]], arguments[[2]], module = RCNN(), layer = layer)
}
