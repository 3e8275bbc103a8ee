# Measures the memory of a module whose weights are R arrays, for memory.py.
# `Rscript memory.R <number of weights>` prints JSON. R stores numbers in eight bytes, so the user's
# arrays take twice the memory of the weights.
library(kerasflax)
folder <- dirname(normalizePath(sub("^--file=", "", grep("^--file=", commandArgs(), value = TRUE))))
number <- as.integer(commandArgs(trailingOnly = TRUE)[[1]])
memory <- reticulate::import_from_path("memory", folder)
width <- memory$WIDTH

make <- function() {
  kernels <- lapply(seq_len(number), \(i) list(kernel = matrix(1, width, width)))
  variables <- list(params = stats::setNames(kernels, paste0("Dense_", seq_len(number) - 1L)))
  layer <- layer_flax_module_wrapper(module = memory$linen(number), variables = variables)
  layer(keras3::keras_input(width))
  reticulate::tuple(layer, NULL)
}

cat(reticulate::import("json")$dumps(memory$measured(make, number)), "\n")
