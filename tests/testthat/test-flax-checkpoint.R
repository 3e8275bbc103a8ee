skip_without_package <- function(package) {
  skip_if_not(reticulate::py_module_available(package), paste(package, "is not installed"))
}

dense_model <- function() {
  keras_model_sequential(3) |> layer_flax_module_wrapper(flax_linen()$Dense(2L), name = "dense")
}

test_that("every format restores what was written, and its variables create a layer", {
  skip_without_flax()
  skip_without_package("safetensors")
  skip_without_package("orbax.checkpoint")
  nn <- flax_linen()
  layer <- layer_flax_module_wrapper(module = nn$Dense(2L))
  x <- matrix(1:6 / 6, 2)
  expected <- as.array(layer(x))
  for (name in c("w.msgpack", "w.safetensors", "w.orbax")) {
    path <- file.path(withr::local_tempdir(), name)
    expect_identical(flax_write(layer, path), layer)
    read <- flax_read(path, progress = TRUE)
    expect_identical(as.array(read$params$kernel), flax_variables(layer)$params$kernel)
    again <- layer_flax_module_wrapper(module = nn$Dense(2L), variables = read)
    expect_identical(as.array(again(x)), expected)
  }
})

test_that("Flax reads R's files in single precision, and R reads Flax's files", {
  skip_without_flax()
  serialization <- reticulate::import("flax.serialization")
  path <- withr::local_tempfile(fileext = ".msgpack")
  flax_write(
    list(params = list(kernel = matrix(1:6 / 3, 2), bias = c(1, 2), scale = 0.5, n = 3L)),
    path
  )
  bytes <- reticulate::import("pathlib", convert = FALSE)$Path(path)$read_bytes()
  restored <- serialization$msgpack_restore(bytes)$params
  expect_equal(restored$kernel, matrix(1:6 / 3, 2), tolerance = 1e-7)
  expect_identical(restored$bias, array(c(1, 2), 2))
  expect_identical(reticulate::py_str(flax_read(path)$params$scale$dtype), "float32")
  expect_identical(reticulate::py_to_r(flax_read(path)$params$n$item()), 3L)
})

test_that("a model's variables survive a round trip through a file", {
  skip_without_flax()
  model <- dense_model()
  path <- withr::local_tempfile(fileext = ".msgpack")
  flax_write(model, path)
  other <- dense_model()
  flax_variables(other) <- flax_read(path, like = other)
  expect_identical(flax_variables(other), flax_variables(model))
})

test_that("`rename` maps paths by patterns or a function, and reports the mapping", {
  skip_without_flax()
  path <- withr::local_tempfile(fileext = ".msgpack")
  flax_write(list(linear.weight = matrix(1, 3, 2), linear.bias = c(1, 2), step = 4L), path)
  layer <- layer_flax_module_wrapper(module = flax_linen()$Dense(2L))
  layer(matrix(1, 1, 3))
  rename <- c("linear[.]weight" = "params/kernel", "linear[.](.*)" = "params/\\1", step = NA)
  expect_snapshot(read <- flax_read(path, like = layer, rename = rename))
  expect_identical(as.array(read$params$bias), array(c(1, 2), 2))
  by_function <- function(path) {
    if (path != "step") paste0("params/", if (path == "linear.weight") "kernel" else "bias")
  }
  read <- suppressMessages(flax_read(path, like = layer, rename = by_function))
  expect_identical(as.array(read$params$kernel), matrix(1, 3, 2))
})

test_that("`transpose` orders the axes of weights as `aperm()` does", {
  skip_without_flax()
  path <- withr::local_tempfile(fileext = ".msgpack")
  conv <- array(as.numeric(1:120), c(2, 3, 4, 5))
  linear <- matrix(as.numeric(1:6), 3, 2)
  flax_write(list(conv.weight = conv, fc.weight = linear, fc.bias = c(1, 2)), path)
  rename <- c("(.*)[.]weight" = "\\1/kernel", "(.*)[.]bias" = "\\1/bias")
  transpose <- list("**/conv/kernel" = c(3, 4, 2, 1), "fc/kernel" = 2:1)
  like <- list(
    conv = list(kernel = array(0, c(4, 5, 3, 2))),
    fc = list(kernel = matrix(0, 2, 3), bias = numeric(2))
  )
  for (template in list(NULL, like)) {
    read <- suppressMessages(
      flax_read(path, like = template, rename = rename, transpose = transpose)
    )
    expect_identical(as.array(read$conv$kernel), aperm(conv, c(3, 4, 2, 1)))
    expect_identical(as.array(read$fc$kernel), t(linear))
    expect_identical(as.array(read$fc$bias), array(c(1, 2), 2))
  }
  here <- function(lines) gsub("'[^']*[.]msgpack'", "'<file>'", scrub(lines))
  expect_snapshot(error = TRUE, transform = here, {
    suppressMessages(flax_read(path, like = like, rename = rename))
    flax_read(path, transpose = list("**/*" = c(2, 1)))
    flax_read(path, transpose = list("**/kernel" = c(2, 1)))
    flax_read(path, transpose = c("*" = 1))
    flax_read(path, transpose = list(c(2, 1)))
    flax_read(path, transpose = list("*" = c(2, 1), "*" = c(1, 2)))
    flax_read(path, transpose = list("*" = c(0, 1)))
    flax_read(path, transpose = list(a = c(2, 1), "*" = "2"))
  })
})

test_that("errors about unusable files and arguments say what was found", {
  skip_without_flax()
  folder <- withr::local_tempdir()
  at <- function(name) file.path(folder, name)
  saveRDS(1, at("w.rds"))
  writeBin(as.raw(1:9), at("broken.msgpack"))
  flax_write(list(params = list(kernel = matrix(1, 9, 2), x = 1)), at("other.msgpack"))
  layer <- layer_flax_module_wrapper(module = flax_linen()$Dense(2L))
  layer(matrix(1, 1, 3))
  here <- function(lines) gsub(folder, "<folder>", scrub(lines), fixed = TRUE)
  expect_snapshot(error = TRUE, transform = here, {
    flax_read(at("w.rds"))
    flax_read(at("broken.msgpack"))
    flax_read(at("none.msgpack"))
    flax_read(at("other.msgpack"), like = layer)
    flax_read(3)
    flax_read(NA_character_)
    flax_read(at("other.msgpack"), progress = NA)
    flax_read(at("other.msgpack"), like = 3)
    flax_read(at("other.msgpack"), rename = "a")
    flax_read(at("other.msgpack"), path = "**/krnel")
    flax_read(at("other.msgpack"), like = layer, path = "**/kernel", skip = "params/**")
    flax_read(at("other.msgpack"), path = 3)
    flax_read(at("other.msgpack"), skip = NA_character_)
    flax_write(layer, at("new.msgpack"), path = "params")
    flax_write(layer, at("new.msgpack"), skip = "**")
    flax_write(layer, at("new.msgpack"), skip = character())
    flax_write(3, at("new.msgpack"))
    flax_write(NULL, at("new.msgpack"))
    flax_write("w.msgpack", at("new.msgpack"))
    flax_write(layer, at("new.rds"))
    flax_write(list(params = list(kernel = "a")), at("new.msgpack"))
    flax_write(layer, at("new.msgpack"), metadata = "a")
  })
  expect_false(file.exists(at("new.msgpack")))
})

test_that("R numbers survive a round trip through a file exactly", {
  skip_without_flax()
  values <- list(b = c(3716834203, 3481239269), c = 2^24 + 1, d = 1e300, e = 0.5, f = c(1i, 2))
  path <- withr::local_tempfile(fileext = ".msgpack")
  flax_write(values, path)
  read <- flax_read(path)
  for (name in names(values)) {
    expect_identical(c(as.array(read[[name]])), values[[name]])
  }
  expect_identical(reticulate::py_str(read$e$dtype), "float32")
})

test_that("half-precision arrays from a file become R arrays through float32", {
  skip_without_flax()
  path <- withr::local_tempfile(fileext = ".msgpack")
  flax_write(
    list(w = reticulate::import("jax.numpy", convert = FALSE)$array(list(0.1, -2.5), "bfloat16")),
    path
  )
  expect_identical(as.array(flax_read(path)$w$astype("float32")), array(c(0.10009765625, -2.5), 2))
})

test_that("a rename function drops a weight with NA, and an unused pattern is reported", {
  skip_without_flax()
  path <- withr::local_tempfile(fileext = ".msgpack")
  flax_write(list(a = 1, b = 2), path)
  expect_identical(
    names(suppressMessages(flax_read(path, rename = \(path) if (path == "b") NA else path))),
    "a"
  )
  expect_message(flax_read(path, rename = c(foo = "bar")), "No name was changed")
})

test_that("names, paths and metadata with invalid text are errors before anything is written", {
  skip_without_flax()
  bad <- "\xe9"
  folder <- withr::local_tempdir()
  at <- function(name) file.path(folder, name)
  expect_error(
    flax_write(list(a = 1), paste0(bad, ".msgpack")),
    "valid UTF-8",
    class = "kerasflax_error_argument"
  )
  expect_error(
    flax_read(paste0(bad, ".msgpack")),
    "valid UTF-8",
    class = "kerasflax_error_argument"
  )
  tree <- stats::setNames(list(1, 2), c(bad, "e"))
  expect_error(
    flax_write(tree, at("a.msgpack")),
    "the name <e9> is not valid UTF-8",
    class = "kerasflax_error_variables"
  )
  Encoding(names(tree)) <- "bytes"
  expect_error(
    flax_write(tree, at("a.msgpack")),
    "not valid UTF-8",
    class = "kerasflax_error_variables"
  )
  write <- function(metadata) flax_write(list(a = 1), at("a.safetensors"), metadata = metadata)
  expect_error(
    write(c(x = "1", x = "2")),
    "have the name \"x\"",
    class = "kerasflax_error_argument"
  )
  expect_error(write(c(x = bad)), "must be valid UTF-8", class = "kerasflax_error_argument")
  expect_length(list.files(folder), 0)
  latin <- bad
  Encoding(latin) <- "latin1"
  flax_write(stats::setNames(list(1), latin), at(paste0(latin, ".msgpack")))
  expect_named(flax_read(at(paste0("\u00e9", ".msgpack"))), "\u00e9")
})

test_that("a name that R cannot represent is an error about the file", {
  skip_without_flax()
  path <- withr::local_tempfile(fileext = ".msgpack")
  reticulate::py_run_string(sprintf(
    "import flax.serialization, numpy
with open(%s, 'wb') as file:
    file.write(flax.serialization.to_bytes({'a\\0b': numpy.ones(2)}))",
    encodeString(path, quote = "'")
  ))
  expect_error(flax_read(path), "zero byte", class = "kerasflax_error_file")
})

test_that("text in `rename` that is not valid UTF-8 is an error", {
  skip_without_flax()
  path <- withr::local_tempfile(fileext = ".msgpack")
  flax_write(list(a = 1), path)
  for (encoding in c("unknown", "bytes")) {
    text <- latin_word(encoding)
    renames <- list(rlang::set_names("b", text), c(a = text), \(path) text)
    for (rename in renames) {
      expect_error(
        flax_read(path, rename = rename),
        "must be valid UTF-8.*<e9>",
        class = "kerasflax_error_argument"
      )
    }
  }
  read <- suppressMessages(flax_read(path, rename = c(a = latin_word("latin1"))))
  expect_named(read, "caf\u00e9")
})

classifier <- function(classes, encoder = "encoder", name = "net") {
  nn <- flax_linen()
  encode <- flax_module("Encoder", call = function(self, inputs) {
    inputs |> (nn$Dense(3L))() |> nn$relu() |> (nn$Dense(4L))()
  })
  classify <- flax_module("Classifier",
    setup = function(self) {
      reticulate::py_set_attr(self, encoder, encode())
      self$head <- nn$Dense(classes)
    },
    call = function(self, inputs) self$head(reticulate::py_get_attr(self, encoder)(inputs))
  )
  keras_model_sequential(5) |> layer_flax_module_wrapper(classify(), name = name)
}

test_that("a model with a new head takes all other weights from a file", {
  skip_without_flax()
  path <- withr::local_tempfile(fileext = ".msgpack")
  saved <- classifier(2L)
  flax_write(saved, path)
  model <- classifier(6L)
  before <- flax_variables(model)$net$params
  expect_error(flax_read(path, like = model), "expected float32(4, 6), got shape (4, 2)",
    fixed = TRUE, class = "kerasflax_error_variables"
  )
  expect_snapshot(part <- flax_read(path, like = model, skip = "**/head/**"))
  flax_variables(model) <- part
  after <- flax_variables(model)$net$params
  expect_identical(after$encoder, flax_variables(saved)$net$params$encoder)
  expect_identical(after$head, before$head)
  report <- expect_message(
    flax_read(path, like = model, skip = "**/head/**"),
    class = "kerasflax_message_report"
  )
  expect_identical(report$skipped, c("net/params/head/bias", "net/params/head/kernel"))
  expect_identical(report$missing, character())
  expect_length(report$mapped, 4)
})

test_that("a submodule moves to another model under another name through a file", {
  skip_without_flax()
  path <- withr::local_tempfile(fileext = ".msgpack")
  saved <- classifier(2L)
  flax_write(saved, path, path = "**/encoder/**")
  expect_named(flax_read(path)$net$params, "encoder")
  model <- classifier(3L, "backbone", "other")
  before <- flax_variables(model)$other$params
  part <- suppressMessages(flax_read(path, like = model, path = "**/backbone/**"))
  by_name <- suppressMessages(flax_read(
    path,
    like = model,
    path = "**/backbone/**",
    rename = c("net/(.*)/encoder/(.*)" = "other/\\1/backbone/\\2")
  ))
  for (read in list(part, by_name)) {
    flax_variables(model) <- list(other = list(params = before))
    flax_variables(model) <- read
    after <- flax_variables(model)$other$params
    expect_identical(after$backbone, flax_variables(saved)$net$params$encoder)
    expect_identical(after$head, before$head)
  }
})

test_that("a checkpoint of an NNX module and a train state are read with `like` alone", {
  skip_without_flax()
  skip_without_package("orbax.checkpoint")
  skip_without_package("optax")
  nnx <- reticulate::import("flax.nnx", convert = FALSE)
  orbax <- reticulate::import("orbax.checkpoint")
  folder <- withr::local_tempdir()
  save <- function(tree, name) {
    checkpointer <- orbax$StandardCheckpointer()
    checkpointer$save(file.path(folder, name), tree)
    checkpointer$close()
  }
  module <- nnx$Linear(3L, 2L, rngs = nnx$Rngs(0L))
  save(nnx$state(module), "nnx")
  layer <- layer_flax_module_wrapper(module = nnx$Linear(3L, 2L, rngs = nnx$Rngs(1L)))
  layer(matrix(1, 2, 3))
  flax_variables(layer) <- flax_read(file.path(folder, "nnx"), like = layer)
  expect_identical(
    flax_variables(layer)$params$kernel,
    reticulate::py_to_r(reticulate::import("numpy", convert = FALSE)$asarray(module$kernel[]))
  )

  model <- dense_model()
  params <- flax_variables(model)$dense$params
  state <- reticulate::import("flax.training.train_state")$TrainState$create(
    apply_fn = NULL,
    params = as_variables(params),
    tx = reticulate::import("optax")$adam(0.1)
  )
  save(state, "state")
  expect_message(
    read <- flax_read(file.path(folder, "state"), like = model),
    "Left over:.*opt_state/\\*\\*.*step",
    class = "kerasflax_message_report"
  )
  expect_identical(as.array(read$dense$params$kernel), params$kernel)
})

test_that("load_model_weights(skip_mismatch = TRUE) loads each weight that fits", {
  skip_without_flax()
  path <- withr::local_tempfile(fileext = ".weights.h5")
  saved <- classifier(2L)
  save_model_weights(saved, path)
  model <- classifier(6L)
  before <- flax_variables(model)$net$params
  output <- reticulate::py_capture_output(
    load_model_weights(model, path, skip_mismatch = TRUE),
    type = "stderr"
  )
  after <- flax_variables(model)$net$params
  expect_identical(after$encoder, flax_variables(saved)$net$params$encoder)
  expect_identical(after$head, before$head)
  expect_match(output, "params/head/kernel: expected float32(4, 6), got shape", fixed = TRUE)
})

test_that("reading and writing show progress if asked to, and are quiet in scripts", {
  skip_without_flax()
  # cli shows progress on a terminal only, and at most five times a second. `cli.dynamic` makes it
  # take the output for a terminal.
  withr::local_envvar(CLI_TICK_TIME = "1")
  code <- function(argument) {
    c(
      "options(cli.dynamic = TRUE, cli.progress_show_after = 0, cli.progress_clear = FALSE)",
      "suppressMessages(library(kerasflax))",
      "tree <- list(params = list(a = matrix(1, 3000, 3000)))",
      "for (suffix in c('.msgpack', '.safetensors', '.orbax')) {",
      "  file <- tempfile(fileext = suffix)",
      "  cat('<', suffix, '>', sep = '')",
      sprintf("  flax_write(tree, file%s)", argument),
      sprintf("  invisible(flax_read(file%s))", argument),
      "}"
    )
  }
  shown <- run_r(code(", progress = TRUE"))
  expect_match(shown, "<.msgpack>.*Writing [^<]* [0-9]+%.*Reading[^<]*100%.*<.safetensors>")
  expect_match(shown, "<.safetensors>.*Writing [^<]* [0-9]+%.*Reading[^<]*100%.*<.orbax>")
  # Orbax does not report.
  expect_match(shown, "<.orbax>[^%]*Writing file[^%]*$")
  quiet <- run_r(code(""))
  expect_no_match(quiet, "Writing", fixed = TRUE)
  expect_no_match(quiet, "Reading", fixed = TRUE)
})
