# Tables created without Python. `shapes` is a list named by path.
parameters_of <- function(shapes, layer = "net", stats = FALSE) {
  paths <- names(shapes)
  size <- vapply(unname(shapes), prod, 0)
  is_flax <- grepl("^(params|batch_stats)/", paths)
  columns <- list(
    layer = rep_len(layer, length(paths)),
    collection = lapply(seq_along(paths), \(i) if (is_flax[[i]]) sub("/.*", "", paths[[i]])),
    path = paths,
    shape = unname(shapes),
    dtype = rep("float32", length(paths)),
    size = size,
    bytes = 4 * size,
    trainable = !grepl("^batch_stats/", paths)
  )
  if (stats) {
    reach <- seq_along(paths) / length(paths)
    columns <- c(
      columns,
      list(mean = reach / 10, sd = reach / 2, min = -reach, max = reach, n_nonfinite = 0 * reach)
    )
  }
  new_parameters(columns)
}

five_weights <- function(...) {
  parameters_of(
    list(
      "batch_stats/BatchNorm_0/mean" = 32,
      "batch_stats/BatchNorm_0/var" = 32,
      "params/Conv_0/kernel" = c(3, 3, 1, 32),
      "params/scale" = numeric(),
      "kernel" = c(32, 10)
    ),
    layer = c("net", "net", "net", "net", "head"),
    ...
  )
}

# The weights of a transformer with the given number of blocks: 12 for each block.
transformer <- function(blocks, ...) {
  block <- list(
    "LayerNorm_0/bias" = 64,
    "LayerNorm_0/scale" = 64,
    "Attention_1/query/bias" = c(4, 16),
    "Attention_1/query/kernel" = c(64, 4, 16),
    "Attention_1/value/bias" = c(4, 16),
    "Attention_1/value/kernel" = c(64, 4, 16),
    "Attention_1/out/bias" = 64,
    "Attention_1/out/kernel" = c(4, 16, 64),
    "Mlp_2/Dense_0/bias" = 256,
    "Mlp_2/Dense_0/kernel" = c(64, 256),
    "Mlp_2/Dense_1/bias" = 64,
    "Mlp_2/Dense_1/kernel" = c(256, 64)
  )
  all <- lapply(seq_len(blocks), \(i) {
    rlang::set_names(block, paste0("params/Encoder/block_", i - 1, "/", names(block)))
  })
  parameters_of(
    c(
      unlist(all, recursive = FALSE),
      list("params/head/bias" = 10, "params/head/kernel" = c(64, 10))
    ),
    ...
  )
}

flat_network <- function(n, ...) {
  parameters_of(
    rlang::set_names(
      lapply(seq_len(n), \(i) c(i, 2)),
      paste0("params/Dense_", seq_len(n), "/kernel")
    ),
    ...
  )
}

# A model with Flax layers and Keras layers, one of which has weights that are not trainable.
mixed_model <- function() {
  input <- keras_input(c(5, 5, 1))
  output <- input |>
    layer_flax_module_wrapper(conv_net(), name = "net") |>
    layer_dense(4, name = "middle") |>
    layer_batch_normalization(name = "norm") |>
    layer_flax_module_wrapper(flax_linen()$Dense(2L), name = "head")
  keras_model(input, output)
}

test_that("a model's table has a row for each weight of every layer, with the right types", {
  skip_without_flax()
  parameters <- flax_parameters(mixed_model())
  expect_s3_class(parameters, c("flax_parameters", "data.frame"), exact = TRUE)
  expect_named(parameters, parameter_columns)
  expect_equal(
    vapply(parameters, typeof, ""),
    c(
      layer = "character",
      collection = "character",
      path = "character",
      shape = "list",
      dtype = "character",
      size = "double",
      bytes = "double",
      trainable = "logical"
    )
  )
  expect_equal(unique(parameters$layer), c("net", "middle", "norm", "head"))
  rownames(parameters) <- parameters$path
  kernel <- parameters["net/params/Conv_0/kernel", ]
  expect_equal(kernel$shape[[1]], c(3L, 3L, 1L, 4L))
  expect_equal(kernel$collection, "params")
  expect_equal(kernel$bytes, 4 * kernel$size)
  expect_false(parameters["net/batch_stats/BatchNorm_0/mean", "trainable"])
  expect_equal(parameters["middle/kernel", "collection"], NA_character_)
  expect_false(parameters["norm/moving_mean", "trainable"])
})

test_that("a layer's table contains only its weights, and one weight is one row", {
  skip_without_flax()
  layer <- layer_flax_module_wrapper(
    module = flax_linen()$Dense(2L, use_bias = FALSE),
    name = "dense"
  )
  layer(matrix(1, 1, 3))
  expect_equal(
    flax_parameters(layer),
    parameters_of(list("params/kernel" = c(3, 2)), layer = "dense")
  )
})

test_that("a path in the table is a pattern that selects its weight alone", {
  skip_without_flax()
  model <- mixed_model()
  objects <- list(model, get_layer(model, "net"))
  paths <- c("net/params/Conv_0/kernel", "params/Conv_0/kernel")
  for (i in 1:2) {
    table <- flax_parameters(objects[[i]])
    expect_true(paths[[i]] %in% table$path)
    flax_freeze(objects[[i]], paths[[i]])
    after <- flax_parameters(objects[[i]])
    expect_identical(after$path[table$trainable & !after$trainable], paths[[i]])
    flax_unfreeze(objects[[i]], paths[[i]])
  }
})

test_that("a model's table has the same tree, plots and document as its layers' tables", {
  skip_if_not_installed("knitr")
  withr::local_pdf(withr::local_tempfile(fileext = ".pdf"))
  for (x in list(five_weights(stats = TRUE), transformer(42, stats = TRUE), flat_network(500))) {
    of_model <- x
    of_model$path <- paste0(x$layer, "/", x$path)
    expect_identical(paths_in_layers(of_model), x$path)
    expect_identical(capture.output(print(of_model)), capture.output(print(x)))
    expect_identical(module_sizes(of_model), module_sizes(x))
    if (has_statistics(x)) expect_identical(weight_values(of_model), weight_values(x))
    expect_identical(knitr::knit_print(of_model), knitr::knit_print(x))
  }
  # A layer with the name of a collection, alone and in a model
  x <- parameters_of(list("params/kernel" = 1, "params/params/kernel" = 1), layer = "params")
  expect_identical(paths_in_layers(x), c("params/kernel", "params/kernel"))
})

test_that("totals match summary(), with frozen weights and after training", {
  skip_without_flax()
  # Returns `Total params: 1,234 (4.82 KB)` as c("1,234", "4.82 KB").
  shown <- function(lines, name) {
    regmatches(lines, regexec(paste0("\\b", name, ": +([0-9,]+) \\(([^)]*)\\)"), lines))
  }
  find <- function(lines, name) Filter(length, shown(lines, name))[[1]][-1]
  expect_agreement <- function(model) {
    keras <- capture.output(print(summary(model)))
    ours <- capture.output(print(flax_parameters(model)))
    if (!model$compiled) {
      expect_equal(find(ours, "Parameters"), find(keras, "Total params"))
    }
    expect_equal(find(ours, "Trainable"), find(keras, "Trainable params"))
    expect_equal(find(ours, "non-trainable"), find(keras, "Non-trainable params"))
    parameters <- flax_parameters(model)
    expect_equal(sum(parameters$size), model$count_params())
    trainable <- sum(vapply(model$trainable_weights, \(weight) prod(unlist(weight$shape)), 0))
    expect_equal(sum(parameters$size[parameters$trainable]), trainable)
  }
  model <- mixed_model()
  expect_agreement(model)
  flax_freeze(model, "net/params/Conv_0/*")
  expect_agreement(model)
  parameters <- flax_parameters(model)
  expect_equal(
    parameters$path[!parameters$trainable & parameters$collection %in% "params"],
    c(
      "net/params/Conv_0/bias",
      "net/params/Conv_0/kernel"
    )
  )
  expect_match(capture.output(print(parameters)), "Conv_0 .* frozen$", all = FALSE)
  compile(model, "adam", "mse")
  fit(model, images(), targets(k = 2), epochs = 1, verbose = 0)
  expect_agreement(model)
})

test_that("modules are sorted by their numbers, and layers keep the model's order", {
  x <- parameters_of(
    list(
      "params/a_10/b" = 1,
      "params/a_2/b" = 1,
      "params/a_2/B" = 1,
      "params/A" = 1,
      "kernel" = 1,
      "bias" = 1,
      "params/c" = 1
    ),
    layer = c("z", "z", "z", "z", "k", "k", "a")
  )
  paths <- c(
    "params/A",
    "params/a_2/B",
    "params/a_2/b",
    "params/a_10/b",
    "kernel",
    "bias",
    "params/c"
  )
  expect_equal(x$path[natural_order(x)], paths)
  expect_equal(natural_order(x[0, ]), integer())
})

test_that("a model without weights has a table without rows", {
  skip_without_flax()
  parameters <- flax_parameters(keras_model_sequential(3) |> layer_dropout(0.5), stats = TRUE)
  expect_equal(dim(parameters), c(0, 13))
  expect_type(parameters$shape, "list")
  expect_type(parameters$mean, "double")
  expect_output(print(parameters), "Parameters: 0 (0.00 B) in 0 weights", fixed = TRUE)
})

test_that("statistics match R's, with the standard deviation of the population", {
  skip_without_flax()
  layer <- layer_flax_module_wrapper(module = conv_net(), name = "net", seed = 1)
  layer(as_jax(images()))
  parameters <- flax_parameters(layer, stats = TRUE)
  expect_named(parameters, c(parameter_columns, statistic_columns))
  for (i in seq_len(nrow(parameters))) {
    value <- flax_variables(layer)[[strsplit(parameters$path[[i]], "/")[[1]]]]
    row <- unlist(parameters[i, c("mean", "sd", "min", "max")])
    expected <- c(
      mean = mean(value),
      sd = sqrt(mean((value - mean(value))^2)),
      min = min(value),
      max = max(value)
    )
    expect_equal(row, expected, tolerance = 1e-5)
  }
  expect_equal(parameters$n_nonfinite, rep(0, nrow(parameters)))

  flax_variables(layer) <- list(params = list(Dense_0 = list(bias = c(NaN, 1, Inf))))
  parameters <- flax_parameters(layer, stats = TRUE)
  bad <- parameters[parameters$path == "params/Dense_0/bias", ]
  expect_equal(bad$n_nonfinite, 2)
  expect_equal(bad$mean, NaN)
  expect_match(
    capture.output(print(parameters)),
    "2 values in 1 weight are not finite",
    all = FALSE
  )
})

test_that("numbers beyond R's integers are exact", {
  skip_without_flax()
  columns <- reticulate::py_eval(
    "{'layer': ['net'], 'collection': ['params'], 'path': ['params/kernel'],
      'shape': [[65536, 65536]],
      'dtype': ['float32'], 'size': [2**32], 'bytes': [2**34], 'trainable': [True]}",
    convert = FALSE
  )
  parameters <- new_parameters(as_columns(columns))
  expect_equal(parameters$size, 2^32)
  expect_equal(parameters$bytes, 2^34)
  expect_match(
    capture.output(print(parameters)),
    "4,294,967,296 (16.00 GB)",
    fixed = TRUE,
    all = FALSE
  )
})

test_that("an object without weights is an error", {
  skip_without_flax()
  layer <- layer_flax_module_wrapper(module = flax_linen()$Dense(2L), name = "dense")
  expect_snapshot(error = TRUE, {
    flax_parameters(3)
    flax_parameters(layer_dense(units = 2))
    flax_parameters(flax_linen()$Dense(2L))
    flax_parameters(layer)
    flax_parameters(keras_model_sequential(name = "open") |> layer_dense(2))
    flax_parameters(mixed_model(), stats = 1)
  })
})

test_that("a small tree is printed in full", {
  local_reproducible_output(width = 120)
  expect_snapshot(print(five_weights()))
  wrong <- five_weights(stats = TRUE)
  wrong$n_nonfinite[[3]] <- 7
  expect_snapshot(print(wrong))
})

test_that("a narrow console drops statistics, and a UTF-8 console draws UTF-8 branches", {
  local_reproducible_output(width = 100, unicode = TRUE)
  expect_snapshot(print(five_weights(stats = TRUE)))
})

test_that("a large tree is folded and keeps every total", {
  large <- transformer(42)
  expect_equal(nrow(large), 506)
  expect_snapshot(print(large))
  lines <- capture.output(print(large, n = Inf))
  expect_length(grep("bias|kernel|scale", lines), 506)
})

test_that("if a module has too many submodules, the others share one line", {
  expect_snapshot(print(flat_network(500), n = 8))
  expect_snapshot(print(flat_network(500, layer = paste0("layer_", 1:500)), n = 4))
})

test_that("a printed tree has at most n lines, and its sizes add up", {
  many_layers <- flat_network(90, layer = paste0("layer_", 1:90))
  tables <- list(five_weights(), transformer(3), transformer(42), flat_network(200), many_layers)
  for (x in tables) {
    tree <- parameter_tree(x)
    expect_setequal(unlist(tree$rows[tree$last == seq_along(tree$last)]), seq_len(nrow(x)))
    for (n in c(1, 2, 5, 20, 60, Inf)) {
      lines <- capture.output(print(x, n = n))[-(1:4)]
      lines <- grep("^#", lines, invert = TRUE, value = TRUE)
      expect_lte(length(lines), n)
      # Lines without branches are layers, or stand for the remaining layers.
      top <- grep("^([|]|\\\\|\u2502|\u251c|\u2514| )", lines, invert = TRUE, value = TRUE)
      numbers <- regmatches(top, regexpr("[0-9,]+(?= +[0-9.]+ [KMG]?B)", top, perl = TRUE))
      expect_equal(sum(as.numeric(gsub(",", "", numbers))), sum(x$size))
    }
  }
})

test_that("layers with the same name stay separate in the tree", {
  x <- parameters_of(
    list(kernel = c(2, 2), bias = 2, kernel = c(3, 3), bias = 3, kernel = c(4, 4)),
    layer = c("query", "query", "query", "query", "value")
  )
  tree <- parameter_tree(x)
  expect_equal(tree$name[tree$depth == 1], c("query", "query", "value/kernel"))
  expect_equal(tree$rows[tree$depth == 1], list(1:2, 3:4, 5L))
})

test_that("rows print as a tree, and a table without some columns prints as a data frame", {
  x <- five_weights(stats = TRUE)
  expect_snapshot({
    x[x$layer == "head", ]
    x[0, ]
    x[1:2, c("path", "size")]
  })
  expect_output(print(x[c(1, NA), ]), "collection")
  expect_output(print(x[[3]]), "batch_stats")
  expect_snapshot(error = TRUE, {
    print(x, n = 0)
    print(x, n = "all")
  })
  expect_identical(capture.output(print(x, n = NULL)), capture.output(print(x)))
})

test_that("write.csv() writes a table and rows of it, with shapes as text", {
  x <- five_weights(stats = TRUE)
  for (table in list(x, x[2:1, ], rbind(x[1, ], x[2, ]))) {
    path <- withr::local_tempfile(fileext = ".csv")
    write.csv(table, path, row.names = FALSE)
    read <- read.csv(path, colClasses = c(shape = "character"))
    expect_identical(read$shape, as.character(table$shape))
    for (name in c("layer", "path", "size", "trainable", "mean", "n_nonfinite")) {
      expect_equal(read[[name]], table[[name]], info = name)
    }
  }
  shapes <- new_shapes(list(integer(), c(3L, 2L)))
  expect_identical(as.character(shapes), c("scalar", "3x2"))
  expect_identical(shapes[2][[1]], c(3L, 2L))
  expect_output(print(shapes), "scalar 3x2", fixed = TRUE)
})

test_that("statistics have room at 80 columns, and other columns are dropped first", {
  x <- five_weights(stats = TRUE)
  for (width in c(80, 120)) {
    withr::local_options(cli.width = width)
    lines <- capture.output(print(x))
    expect_true(all(nchar(lines) <= width))
    expect_true(all(vapply(c("mean", "sd", "min", "max"), \(name) any(grepl(name, lines)), NA)))
  }
})

on_devices <- function(...) {
  x <- five_weights(...)
  x$sharding <- c("replicated", "replicated", "-,-,-,batch+model", "one device", "model,-")
  x$devices <- c(8, 8, 8, 1, 8)
  x$bytes_per_device <- x$bytes / c(1, 1, 8, 1, 4)
  x
}

test_that("a table on several devices prints what each of them holds, and fits 80 columns", {
  expect_snapshot({
    on_devices()
    print(on_devices(), n = 3)
    on_devices(stats = TRUE)
  })
  for (width in c(80, 120)) {
    withr::local_options(cli.width = width)
    for (stats in c(FALSE, TRUE)) {
      lines <- capture.output(print(on_devices(stats = stats)))
      expect_true(all(nchar(lines) <= width))
      expect_match(lines, if (stats) "max" else "sharding +per device", all = FALSE)
    }
  }
  one <- on_devices()[4, ]
  expect_no_match(capture.output(print(one)), "Split")
  # Two distributions, and rows without columns.
  x <- on_devices()
  x$devices[[1]] <- 2
  expect_identical(
    device_line(x),
    "Each of 8 devices: 592.00 B; each of 2 devices: 128.00 B; one device: 4.00 B"
  )
  x$sharding <- NULL
  expect_no_match(capture.output(print(x)), "device")
})

test_that("a table becomes a tibble with all its columns", {
  skip_if_not_installed("tibble")
  x <- five_weights(stats = TRUE)
  tibble <- tibble::as_tibble(x)
  expect_s3_class(tibble, c("tbl_df", "tbl", "data.frame"), exact = TRUE)
  expect_identical(as.list(tibble), as.list(x))
})
