# A script that defines a module in R and some data.
definition <- c(
  "library(kerasflax)
   nn <- reticulate::import('flax.linen')
   RNet(nn$Module) %py_class% {
     `__annotations__` <- reticulate::dict(units = reticulate::import_builtins()$int)
     units <- 4L
     `__call__` <- nn$compact(\\(self, inputs, training = FALSE) {
       inputs |>
         (nn$Dense(self$units))() |>
         (nn$BatchNorm(momentum = 0.5))(use_running_average = !training) |>
         (nn$Dropout(0.5))(deterministic = !training) |>
         (nn$Dense(2L))()
     })
   }
   x <- matrix(seq(-1, 1, length.out = 24), 8)
   y <- matrix(seq(0, 1, length.out = 16), 8)"
)

test_that("a saved model with an R module continues training in a new session", {
  skip_without_flax()
  path <- withr::local_tempfile(fileext = ".keras")
  # Keras 3.13 returns the mean loss of a batch and all earlier batches.
  go_on <- "model$reset_metrics()
  result <- list(
    predict(model, x, verbose = 0), train_on_batch(model, x, y), flax_variables(model),
    get_layer(model, 'net')$frozen
  )"
  old <- result_of(c(
    definition,
    sprintf(
      "model <- keras_model_sequential(3) |>
         layer_flax_module_wrapper(RNet(units = 5L), name = 'net')
     flax_freeze(model, '**/Dense_0/kernel')
     compile(model, optimizer_adam(0.1), 'mse')
     fit(model, x, y, epochs = 2, verbose = 0)
     save_model(model, '%s')",
      path
    ),
    go_on
  ))
  new <- result_of(c(definition, sprintf("model <- load_model('%s')", path), go_on))
  expect_identical(new, old)
  expect_length(old[[4]], 1)

  missing <- run_r(c("library(kerasflax)", sprintf("try(load_model('%s'))", path)))
  expect_match(missing, "'RNet'", fixed = TRUE)
  expect_match(missing, "was defined in an R session or script", fixed = TRUE)
  expect_match(missing, "Run the code that defines it, or", fixed = TRUE)
  advice <- "pass the class: `custom_objects = list(RNet = x)`, where `x` is the R variable"
  expect_match(missing, advice, fixed = TRUE)
  passed <- c(
    "library(kerasflax)",
    sub("RNet(nn$Module)", "Other(nn$Module)", definition, fixed = TRUE),
    sprintf("model <- load_model('%s', custom_objects = list(RNet = Other))", path),
    go_on
  )
  expect_identical(result_of(passed), old)
})

test_that("killed training resumes as if it had not been killed", {
  skip_without_flax()
  train <- function(folder, kill) {
    sprintf(
      "epochs <- 0
       killer <- callback_lambda(
         on_epoch_begin = function(epoch, logs) epochs <<- epoch,
         on_train_batch_end = function(batch, logs) {
           if (%s && epochs == 3 && batch == 2) tools::pskill(Sys.getpid(), 9L)
         }
       )
       model <- keras_model_sequential(3) |>
         layer_flax_module_wrapper(RNet(), name = 'net', seed = 1)
       compile(model, optimizer_adam(0.1), 'mse')
       callbacks <- list(
         callback_backup_and_restore(file.path('%s', 'backup')),
         callback_model_checkpoint(file.path('%s', 'm{epoch}.keras')),
         killer
       )
       fit(
         model, x, y, epochs = 4, batch_size = 2, shuffle = FALSE, verbose = 0,
         callbacks = callbacks
       )
       result <- flax_variables(model)",
      kill,
      folder,
      folder
    )
  }
  folders <- file.path(withr::local_tempdir(), c("killed", "never"))
  lapply(folders, dir.create)
  expect_error(result_of(c(definition, train(folders[[1]], TRUE))))
  expect_setequal(list.files(folders[[1]], "keras$"), c("m1.keras", "m2.keras"))
  resumed <- result_of(c(definition, train(folders[[1]], FALSE)))
  expect_identical(resumed, result_of(c(definition, train(folders[[2]], FALSE))))
  checkpoint <- "model <- load_model('%s')
    fit(model, x, y, epochs = 4, initial_epoch = 3, batch_size = 2, shuffle = FALSE, verbose = 0)
    result <- flax_variables(model)"
  expect_identical(
    result_of(c(definition, sprintf(checkpoint, file.path(folders[[1]], "m2.keras")))),
    resumed
  )
})

test_that("a model of Flax's own modules needs only the package to load", {
  skip_without_flax()
  path <- withr::local_tempfile(fileext = ".keras")
  flax <- reticulate::import("flax")
  model <- keras_model_sequential(3) |>
    layer_flax_module_wrapper(flax$linen$Sequential(list(
      flax$linen$Dense(4L),
      flax$linen$relu,
      flax$linen$Dense(2L)
    )))
  save_model(model, path)
  x <- matrix(seq(-1, 1, length.out = 24), 8)
  loaded <- result_of(sprintf(
    "library(kerasflax)
     x <- matrix(seq(-1, 1, length.out = 24), 8)
     result <- predict(load_model('%s'), x, verbose = 0)",
    path
  ))
  expect_identical(loaded, predict(model, x, verbose = 0))
})

test_that("an R function used as `method` is found by its name in the session", {
  skip_without_flax()
  path <- withr::local_tempfile(fileext = ".keras")
  define <- "
    library(kerasflax)
    twice <- function(module, inputs) 2 * module(inputs)
    x <- matrix(1, 2, 3)"
  old <- result_of(c(
    define,
    sprintf(
      "model <- keras_model_sequential(3) |>
       layer_flax_module_wrapper(reticulate::import('flax.linen')$Dense(2L), method = twice)
     save_model(model, '%s')
     result <- predict(model, x, verbose = 0)",
      path
    )
  ))
  expect_identical(
    result_of(c(define, sprintf("result <- predict(load_model('%s'), x, verbose = 0)", path))),
    old
  )
  missing <- run_r(c("library(kerasflax)", sprintf("try(load_model('%s'))", path)))
  expect_match(missing, "'twice'", fixed = TRUE)
})

test_that("a Python function used as `method` or in a field is found by its name", {
  skip_without_flax()
  path <- withr::local_tempfile(fileext = ".keras")
  define <- "
    library(kerasflax)
    x <- matrix(1, 2, 3)
    reticulate::py_run_string('
import functools
from typing import Any
from flax import linen as nn
def halved(x): return x / 2
class Net(nn.Module):
  function: Any = None
  @nn.compact
  def __call__(self, inputs): return nn.Dense(2)(self.function(inputs))
def encode(module, inputs, training, by): return by * module(inputs)
net, thrice = Net(halved), functools.partial(encode, by=3.0)
')
    py <- reticulate::py"
  old <- result_of(c(
    define,
    sprintf(
      "model <- keras_model_sequential(3) |>
         layer_flax_module_wrapper(py$net, method = py$thrice)
       save_model(model, '%s')
       result <- predict(model, x, verbose = 0)",
      path
    )
  ))
  expect_identical(
    result_of(c(define, sprintf("result <- predict(load_model('%s'), x, verbose = 0)", path))),
    old
  )
  missing <- run_r(c(define, "reticulate::py_run_string('del encode')",
    sprintf("try(load_model('%s'))", path)))
  expect_match(missing, "`method` is the function 'encode'", fixed = TRUE)
  expect_match(missing, "pass the function: `custom_objects = list(encode = x)`", fixed = TRUE)
})

test_that("an R function is not saved under a name that now has another function", {
  skip_without_flax()
  path <- withr::local_tempfile(fileext = ".keras")
  printed <- run_r(sprintf(
    "library(kerasflax)
     nn <- reticulate::import('flax.linen')
     method <- function(module, inputs) 2 * module(inputs)
     wrap <- function(method) {
       keras_model_sequential(3) |> layer_flax_module_wrapper(nn$Dense(2L), method = method)
     }
     saved <- function(model) {
       cat(tryCatch({
         save_model(model, '%s', overwrite = TRUE)
         'saved'
       }, error = conditionMessage))
     }
     saved(wrap(method))
     saved(wrap(function(module, inputs) module(inputs)))
     model <- wrap(method)
     method <- function(module, inputs) 0 * module(inputs)
     saved(model)
     thrice <- function(module, inputs) 3 * module(inputs)
     again <- load_model('%s', custom_objects = list(method = thrice))
     saved(again)",
    path,
    path
  ))
  expect_match(printed, "saved.*cannot be saved.*cannot be saved.*saved")
})

test_that("a module that cannot be saved leaves the existing file unchanged", {
  skip_without_flax()
  path <- withr::local_tempfile(fileext = ".keras", lines = "precious")
  nn <- flax_linen()
  model <- keras_model_sequential(3) |>
    layer_flax_module_wrapper(nn$Sequential(list(nn$Dense(2L), \(x) x)))
  expect_error(
    save_model(model, path, overwrite = TRUE),
    "Sequential.layers\\[1\\] cannot be saved: it is an R function",
    class = "kerasflax_error_config"
  )
  expect_identical(readLines(path), "precious")
})

test_that("a model survives a round trip through a raw vector", {
  skip_without_flax()
  model <- keras_model_sequential(3) |> layer_flax_module_wrapper(flax_linen()$Dense(2L))
  raw <- save_model(model)
  expect_type(raw, "raw")
  x <- matrix(seq(-1, 1, length.out = 24), 8)
  expect_identical(predict(load_model(raw), x, verbose = 0), predict(model, x, verbose = 0))
})

test_that("a cloned model has the same module and its own values", {
  skip_without_flax()
  model <- keras_model_sequential(3) |>
    layer_flax_module_wrapper(flax_linen()$Dense(2L), name = "net")
  clone <- clone_model(model)
  kernels <- lapply(list(model, clone), \(model) flax_variables(model)$net$params$kernel)
  expect_identical(dim(kernels[[1]]), dim(kernels[[2]]))
  expect_false(identical(kernels[[1]], kernels[[2]]))
  config <- get_config(get_layer(clone, "net"))
  expect_identical(config$module, list(object = "flax.linen:Dense", fields = list(features = 2L)))
})

test_that("a model that cannot be saved can be cloned", {
  skip_without_flax()
  nn <- flax_linen()
  model <- keras_model_sequential(3) |>
    layer_flax_module_wrapper(nn$Sequential(list(nn$Dense(2L), \(x) x * 2)), \(module, inputs) {
      module(inputs)
    })
  expect_error(save_model(model, withr::local_tempfile(fileext = ".keras")))
  clone <- clone_model(model)
  clone$set_weights(model$get_weights())
  x <- matrix(seq(-1, 1, length.out = 24), 8)
  expect_identical(predict(clone, x, verbose = 0), predict(model, x, verbose = 0))
})

test_that("layers and models are restored from their config in R", {
  skip_without_flax()
  nn <- flax_linen()
  fields <- flax_module(
    "Fields",
    sizes = 3L,
    one = flax_field(),
    options = list(),
    names = flax_field(),
    call = function(self, inputs) (nn$Dense(self$sizes))(inputs)
  )
  module <- fields(one = reticulate::tuple(3L), names = list(list("a"), 1L))
  model <- keras_model_sequential(3) |>
    layer_flax_module_wrapper(module, name = "net", seed = 2^32 - 1)
  flax_freeze(model, "**/bias")
  layer <- get_layer(model, "net")
  expect_true(from_config(get_config(layer))$module == module)
  again <- get_layer(from_config(get_config(model)), "net")
  expect_true(again$module == module)
  expect_identical(again$seed, layer$seed)
  expect_identical(again$frozen, layer$frozen)
})

test_that("`custom_objects` accepts a constructor as the class", {
  skip_without_flax()
  nn <- flax_linen()
  path <- withr::local_tempfile(fileext = ".keras")
  define <- function(name) {
    flax_module(name, units = 3L, call = function(self, inputs) (nn$Dense(self$units))(inputs))
  }
  model <- keras_model_sequential(3) |> layer_flax_module_wrapper(define("Before")(units = 2))
  save_model(model, path)
  loaded <- load_model(path, custom_objects = list(Before = define("After")))
  module <- loaded$layers[[1]]$module
  expect_identical(class(module)[[1]], "<r-globalenv>.After")
  expect_identical(module$units, 2L)
})

test_that("files from every version can be loaded", {
  skip_without_flax()
  nn <- flax_linen()
  flax_module(
    "FixtureInR",
    units = 3L,
    sizes = c(2L, 4L),
    call = function(self, inputs, training = FALSE) {
      x <- (nn$Dense(self$units))(inputs)
      x <- (nn$BatchNorm())(x, use_running_average = !training)
      (nn$Dense(2L))(x)
    }
  )
  x <- matrix(seq(-1, 1, length.out = 24), 6)
  for (path in Sys.glob(test_path("fixtures", "*.keras"))) {
    model <- load_model(path)
    expected <- matrix(scan(sub("keras$", "txt", path), quiet = TRUE), 6, byrow = TRUE)
    expect_equal(predict(model, x, verbose = 0), expected, tolerance = 1e-6)
    frozen <- paste0("params/", c("BatchNorm_0", "Dense_0", "Dense_1"), "/bias")
    expect_identical(unlist(get_layer(model, "net")$frozen), frozen)
  }
})

# Interrupts Python while it writes, at the next call of fsync().
interrupted <- function(expr) {
  reticulate::py_run_string(
    "import os\n_fsync = os.fsync\ndef _stop(_): raise KeyboardInterrupt\nos.fsync = _stop"
  )
  withr::defer(reticulate::py_run_string("os.fsync = _fsync"))
  tryCatch({
    expr
    "done"
  }, interrupt = \(condition) "interrupted", error = \(condition) "interrupted")
}

test_that("an interrupt during writing leaves the old file and no other file", {
  skip_without_flax()
  nn <- flax_linen()
  folder <- withr::local_tempdir()
  models <- lapply(1:2, \(seed) {
    keras_model_sequential(3) |> layer_flax_module_wrapper(nn$Dense(2L), seed = seed)
  })
  writers <- list(
    "m.keras" = \(model, path) save_model(model, path, overwrite = TRUE),
    "folder" = \(model, path) save_model(model, path, overwrite = TRUE, zipped = FALSE),
    "w.msgpack" = \(model, path) flax_write(model, path)
  )
  if (reticulate::py_module_available("flatbuffers")) {
    writers[["m.stablehlo"]] <- \(model, path) flax_export(model, path, platforms = "cpu")
  }
  if (reticulate::py_module_available("orbax.checkpoint")) {
    writers[["w"]] <- \(model, path) flax_write(model, path)
  }
  for (name in names(writers)) {
    path <- file.path(folder, name)
    writers[[name]](models[[1]], path)
    files <- if (dir.exists(path)) list.files(path, recursive = TRUE, full.names = TRUE) else path
    before <- tools::md5sum(files)
    expect_identical(interrupted(writers[[name]](models[[2]], path)), "interrupted", label = name)
    expect_identical(tools::md5sum(files), before, label = name)
  }
  expect_setequal(list.files(folder, all.files = TRUE, no.. = TRUE), names(writers))
})

test_that("an existing file is replaced only with overwrite = TRUE", {
  skip_without_flax()
  path <- withr::local_tempfile(fileext = ".keras", lines = "precious")
  model <- keras_model_sequential(3) |> layer_flax_module_wrapper(flax_linen()$Dense(2L))
  expect_error(save_model(model, path), "already exists", class = "kerasflax_error_file")
  expect_identical(readLines(path), "precious")
  expect_error(save_model(model, 3), class = "kerasflax_error_argument")
  expect_error(save_model(model, file.path(path, "m.keras")), class = "kerasflax_error_file")
  save_model(model, path, overwrite = TRUE)
  expect_identical(readBin(path, "raw", 2), charToRaw("PK"))
})

test_that("a file name in place of the model is an error", {
  skip_without_flax()
  model <- keras_model_sequential(3) |> layer_flax_module_wrapper(flax_linen()$Dense(2L))
  expect_snapshot(save_model("model.keras", model), error = TRUE)
})

test_that("a filepath that is not valid UTF-8 is an error, and nothing is written", {
  skip_without_flax()
  folder <- withr::local_tempdir()
  model <- keras_model_sequential(3) |> layer_flax_module_wrapper(flax_linen()$Dense(2L))
  for (encoding in c("unknown", "bytes")) {
    path <- paste0(latin_word(encoding), ".keras")
    expect_error(
      withr::with_dir(folder, save_model(model, path)),
      "`filepath` must be valid UTF-8.*<e9>",
      class = "kerasflax_error_argument"
    )
  }
  expect_length(list.files(folder), 0)
})
