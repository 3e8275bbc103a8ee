test_that("weights are split over devices, and the numbers and files are those of one device", {
  skip_without_flax()
  result <- result_of(
    '
    Sys.setenv(XLA_FLAGS = "--xla_force_host_platform_device_count=8")
    library(keras3)
    library(kerasflax)
    nn <- reticulate::import("flax")$linen
    x <- matrix(seq(-1, 1, length.out = 64), 8)
    predicted <- function(...) {
      distribution <- flax_distribute(...)
      init <- nn$with_logical_partitioning(nn$initializers$ones, reticulate::tuple("embed", "mlp"))
      model <- keras_model_sequential(8) |>
        layer_flax_module_wrapper(nn$Dense(8L, kernel_init = init), name = "first", seed = 1) |>
        layer_flax_module_wrapper(nn$Dense(4L), name = "last", seed = 2) |>
        compile(optimizer_sgd(0.01), "mse")
      fit(model, x, x[, 1:4], batch_size = 8, verbose = 0)
      specs <- if (!is.null(distribution)) {
        vapply(model$weights, \\(weight) reticulate::py_str(tuple(weight$value$sharding$spec)), "")
      }
      names(specs) <- if (!is.null(specs)) vapply(model$weights, \\(weight) weight$path, "")
      list(predict(model, x, verbose = 0), specs, flax_parameters(model))
    }
    tuple <- reticulate::import_builtins(convert = FALSE)$tuple
    mesh <- c(batch = 2, model = 4)
    result <- list(
      one = predicted(NULL),
      layout = predicted(mesh, layout = list("**/last/**/kernel" = c(NA, "model"))),
      rules = predicted(mesh, rules = list(mlp = "model", embed = NA)),
      both = predicted(mesh, layout = list("**/first/**/bias" = list(c("batch", "model"))))
    )

    # The other functions, on eight devices and then on one.
    flax_distribute(mesh, layout = list("**/kernel" = c(NA, "model")))
    model <- keras_model_sequential(8) |>
      layer_flax_module_wrapper(nn$Dense(4L), name = "net", seed = 1) |>
      compile(optimizer_sgd(0.01), "mse")
    flax_freeze(model, "**/bias")
    result$frozen <- model$layers[[1]]$frozen
    fit(model, x, x[, 1:4], batch_size = 8, verbose = 0)
    result$variables <- flax_variables(model)
    result$printed <- capture.output(print(flax_parameters(model, stats = TRUE)))
    expected <- predict(model, x, verbose = 0)
    folder <- tempfile()
    dir.create(folder)
    files <- file.path(folder, c("w.safetensors", "w.msgpack", "w.orbax"))
    for (file in files) flax_write(model, file)
    save_model(model, file.path(folder, "m.keras"))
    flax_export(model, file.path(folder, "m.stablehlo"))
    result$differences <- list()
    for (each in list(NULL, c(batch = 2, model = 2), mesh)) {
      flax_distribute(each)
      loaded <- load_model(file.path(folder, "m.keras"))
      found <- list(loaded = predict(loaded, x, verbose = 0))
      for (file in files) {
        flax_variables(loaded) <- list(net = list(params = list(kernel = matrix(0, 8, 4))))
        flax_variables(loaded) <- flax_read(file, like = loaded)
        found[[basename(file)]] <- predict(loaded, x, verbose = 0)
      }
      found$imported <- as.array(flax_import(file.path(folder, "m.stablehlo"))(x))
      found$cloned <- predict(set_weights(clone_model(loaded), get_weights(loaded)), x, verbose = 0)
      result$differences <- c(result$differences, lapply(found, \\(y) max(abs(y - expected))))
    }

    failure <- function(code) conditionMessage(tryCatch(code, error = identity))
    flax_distribute(c(batch = 8))
    result$meshes <- failure(model(x))
    flax_distribute(c(batch = 1, model = 8), layout = list("**/kernel" = c(NA, "model")))
    result$divides <- failure(layer_flax_module_wrapper(x, nn$Dense(4L)))
    flax_distribute(mesh, layout = list("**/kernell" = c(NA, "model")))
    model <- keras_model_sequential(8) |>
      layer_flax_module_wrapper(nn$Dense(4L), name = "net") |>
      compile(optimizer_sgd(0.01), "mse")
    result$unused <- failure(fit(model, x, x[, 1:4], verbose = 0))
    '
  )
  for (kind in c("layout", "rules", "both")) {
    expect_equal(result[[kind]][[1]], result$one[[1]], tolerance = 1e-5)
  }
  split <- function(kind) {
    specs <- grep("'", result[[kind]][[2]], value = TRUE)
    rlang::set_names(specs, sub("^[^/]*/", "", names(specs)))
  }
  expect_identical(split("layout"), c("last/params/kernel" = "(None, 'model')"))
  expect_identical(split("rules"), c("first/params/kernel" = "(None, 'model')"))
  expect_identical(split("both"), c("first/params/bias" = "(('batch', 'model'),)"))

  expect_named(result$one[[3]], parameter_columns)
  table <- result$layout[[3]]
  expect_named(table, c(parameter_columns, placement_columns))
  expect_identical(table$sharding, c("replicated", "replicated", "replicated", "-,model"))
  expect_identical(table$devices, rep(8, 4))
  expect_identical(table$bytes_per_device, table$bytes / c(1, 1, 1, 4))
  expect_identical(sum(result$both[[3]]$sharding == "batch+model"), 1L)

  expect_identical(result$frozen, "params/bias")
  expect_identical(dim(result$variables$net$params$kernel), c(8L, 4L))
  expect_match(result$printed, "Each of 8 devices: 48.00 B", all = FALSE, fixed = TRUE)
  expect_length(result$differences, 18)
  expect_lt(max(unlist(result$differences)), 1e-5)

  expect_match(result$meshes, "'net' was built on the mesh batch=2 x model=4, but the")
  expect_match(result$divides, "'model' of size 8 does not divide 4 in (8, 4)", fixed = TRUE)
  expect_match(result$unused, "'**/kernell'.\nCorrect the pattern", fixed = TRUE)
})

test_that("wrong arguments are refused, and the distribution stays as it was", {
  skip_without_flax()
  withr::defer(flax_distribute(NULL))
  expect_snapshot(error = TRUE, {
    flax_distribute(c(2, 4))
    flax_distribute(c(batch = 0))
    flax_distribute(c(batch = 999), devices = "cpu:0")
    flax_distribute(c(batch = 1), layout = list("**/kernel" = c(NA, "model")))
    flax_distribute(c(batch = 1), layout = "batch")
    flax_distribute(c(batch = 1), rules = list(mlp = "model"))
    flax_distribute(c(batch = 1), auto = TRUE)
    flax_distribute(NULL, auto = TRUE)
    flax_distribute(8)
    flax_distribute("batch")
    flax_distribute(c(batch = 1, 1))
    flax_distribute(c(batch = 1, batch = 1))
    flax_distribute(list())
    flax_distribute(NA)
    flax_distribute(c(batch = -1))
    flax_distribute(c(batch = 1.5))
    flax_distribute(c(batch = NA))
    flax_distribute(c(batch = "1"))
    flax_distribute(c(batch = 1), layout = list("**/kernel" = 1))
    flax_distribute(c(batch = 1), layout = list("**/kernel" = mean))
    flax_distribute(c(batch = 1), layout = list("batch", "**/kernel" = "batch"))
    flax_distribute(c(batch = 1), layout = list("**/kernel" = c("batch", "batch")))
    flax_distribute(c(batch = 1), rules = TRUE)
    flax_distribute(c(batch = 1), rules = list(mlp = 1))
    flax_distribute(c(batch = 1), auto = NULL)
    flax_distribute(c(batch = 1), auto = "yes")
    flax_distribute(c(batch = 1), devices = 0)
    flax_distribute(c(batch = 1), devices = c("cpu:0", "cpu:0"))
    flax_distribute(c(batch = 1), devices = "cpu:99")
  })
  expect_null(reticulate::import("keras")$distribution$distribution())
  expect_null(flax_distribute(NULL))
})

test_that("mesh sizes are whole doubles or integers, in a vector, a list or a Python dict", {
  skip_without_flax()
  withr::defer(flax_distribute(NULL))
  dict <- reticulate::py_eval("{'batch': 1, 'model': 1}", convert = FALSE)
  shapes <- list(c(batch = 1, model = 1), c(batch = 1L, model = 1L), list(batch = 1, model = 1L))
  for (mesh in c(shapes, dict)) {
    distribution <- flax_distribute(mesh, layout = list(), rules = list())
    expect_identical(reticulate::py_str(distribution$device_mesh$axis_names), "['batch', 'model']")
  }
  distribution <- flax_distribute(shapes[[1]], layout = c("**/kernel" = "model"), rules = c(a = NA))
  expect_identical(reticulate::py_str(distribution$layout), "{'**/kernel': ('model',)}")
  expect_identical(reticulate::py_str(distribution$rules), "(('a', None),)")
})

test_that("two processes of four devices do what one process of eight does", {
  skip_without_flax()
  skip_if_not_installed("callr")
  train <- function(processes, id, port, folder) {
    Sys.setenv(
      JAX_PLATFORMS = "cpu",
      XLA_FLAGS = paste0("--xla_force_host_platform_device_count=", 8 / processes)
    )
    if (processes > 1) {
      jax <- reticulate::import("jax")
      jax$distributed$initialize(paste0("127.0.0.1:", port), processes, id)
    }
    library(kerasflax)
    set_random_seed(1)
    flax_distribute(c(batch = 8))
    model <- keras_model_sequential(4) |>
      layer_flax_module_wrapper(flax_module(
        "Net",
        call = function(self, inputs, training) {
          x <- self$dropout(inputs, deterministic = !training)
          self$dense(x)
        },
        setup = function(self) {
          nn <- reticulate::import("flax")$linen
          self$dropout <- nn$Dropout(0.5)
          self$dense <- nn$Dense(2)
        }
      )(), seed = 2) |>
      compile(optimizer_sgd(0.01), "mse")
    # Each process passes its rows of every batch of 8.
    rows <- which((seq_len(32) - 1) %% 8 %/% (8 / processes) == id)
    x <- matrix(seq(-1, 1, length.out = 128), 32)
    fit_it <- function() {
      fit(
        model, x[rows, ], x[rows, 1:2],
        batch_size = 8 / processes, epochs = 2, shuffle = FALSE, verbose = 0
      )
    }
    losses <- fit_it()$metrics$loss
    values <- flax_variables(model)
    flax_write(model, file.path(folder, "w.msgpack"))
    flax_write(model, file.path(folder, "w"))
    save_model(model, file.path(folder, "model.keras"))
    files <- lapply(file.path(folder, c("w.msgpack", "w")), \(file) {
      fit_it()
      flax_variables(model) <- flax_read(file, like = model)
      flax_variables(model)
    })
    list(losses = losses, values = values, files = files)
  }
  environment(train) <- globalenv()
  run <- function(processes) {
    folder <- withr::local_tempdir(.local_envir = parent.frame(2))
    port <- 20000L + Sys.getpid() %% 20000L
    running <- lapply(seq_len(processes) - 1L, \(id) {
      callr::r_bg(train, list(processes, id, port, folder), libpath = .libPaths())
    })
    lapply(running, \(process) {
      process$wait()
      process$get_result()
    })
  }
  one <- run(1L)[[1]]
  for (result in run(2L)) {
    expect_equal(result$losses, one$losses, tolerance = 1e-5)
    expect_equal(result$values, one$values, tolerance = 1e-5)
    expect_identical(result$files, list(result$values, result$values))
  }
})
