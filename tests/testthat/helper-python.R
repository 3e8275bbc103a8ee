# XLA takes longer to optimize a program than to run it once, and most programs here run only once.
# Python and subprocesses inherit the setting.
if (!nzchar(Sys.getenv("JAX_DISABLE_MOST_OPTIMIZATIONS"))) {
  Sys.setenv(JAX_DISABLE_MOST_OPTIMIZATIONS = "1")
}

# Skips a test that cannot use Python: on CRAN, or without a Python that has Flax. Uses only the
# Python that the environment names, because reticulate could otherwise download one.
skip_without_flax <- function() {
  skip_on_cran()
  python <- Sys.getenv("RETICULATE_PYTHON")
  skip_if(!nzchar(python) || !file.exists(python), "RETICULATE_PYTHON names no Python")
  skip_if_not(reticulate::py_module_available("flax"), "Flax is not installed")
}

flax_linen <- function() reticulate::import("flax.linen")

# A module as an R user would write it, with convolution, batch statistics, dropout and `training`.
conv_net <- function(rate = 0.5) {
  nn <- flax_linen()
  ConvNet(nn$Module) %py_class% {
    `__call__` <- nn$compact(\(self, inputs, training = FALSE) {
      inputs |>
        (nn$Conv(4L, c(3L, 3L)))() |>
        (nn$BatchNorm(momentum = 0.9))(use_running_average = !training) |>
        nn$relu() |>
        (\(x) x$mean(reticulate::tuple(1L, 2L)))() |>
        (nn$Dropout(rate))(deterministic = !training) |>
        (nn$Dense(3L))()
    })
  }
  ConvNet()
}

# Small, constant images and targets.
images <- function(n = 8) array(seq(-1, 1, length.out = n * 5 * 5), c(n, 5, 5, 1))
targets <- function(n = 8, k = 3) array(seq(0, 1, length.out = n * k), c(n, k))

as_jax <- function(x) reticulate::import("jax.numpy")$asarray(x)

# The paths of the weights of a layer or model.
paths_of <- function(object) vapply(object$weights, \(weight) weight$path, "")

# Removes versions, and the lines that reticulate and JAX add to a Python error.
scrub <- function(lines) {
  lines <- grep("^-{20}$|JAX has removed|^Run `reticulate", lines, value = TRUE, invert = TRUE)
  gsub("ConvNet_?[0-9]*", "ConvNet", lines)
}

# Runs R code in a new process, as a user would start R, and returns its output.
run_r <- function(code, env = character()) {
  callr::rscript(
    withr::local_tempfile(lines = code, fileext = ".R"),
    libpath = .libPaths(),
    env = c(callr::rcmd_safe_env(), env),
    show = FALSE,
    stderr = "2>&1"
  )$stdout
}

# Runs code in a new R session and returns the value of `result`.
result_of <- function(code) {
  file <- withr::local_tempfile(fileext = ".rds")
  printed <- run_r(c(code, sprintf("saveRDS(result, '%s')", file)))
  if (!file.exists(file)) {
    stop(printed)
  }
  readRDS(file)
}

# A word in Latin-1 with the given declared encoding. Only "latin1" is the right one: "unknown"
# makes the text invalid UTF-8, and "bytes" stands for an encoding that has been lost.
latin_word <- function(encoding) {
  text <- "caf\xe9"
  Encoding(text) <- encoding
  text
}
