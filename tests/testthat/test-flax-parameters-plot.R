# Tables like those of flax_parameters(), created without Python.
drawn_table <- function(paths, size, collection = "params", layer = "net", reach = 1) {
  n <- length(paths)
  new_parameters(list(
    layer = rep_len(layer, n),
    collection = as.list(rep_len(collection, n)),
    path = paths,
    shape = as.list(size),
    dtype = rep("float32", n),
    size = size,
    bytes = 4 * size,
    trainable = rep_len(collection, n) == "params",
    mean = rep(0.1, n),
    sd = rep(0.2, n),
    min = rep(-1, n),
    max = rep_len(reach, n),
    n_nonfinite = rep(0, n)
  ))
}

blocks <- function(n) {
  paths <- paste0(
    "params/Encoder/block_",
    rep(seq_len(n), each = 4),
    "/Dense_",
    0:1,
    rep(c("/bias", "/kernel"), each = 2)
  )
  drawn_table(c(paths, "params/head/kernel"), c(rep(c(3, 3, 9, 9), n), 100))
}

flat <- function(n) {
  drawn_table(paste0("params/Dense_", seq_len(n), "/kernel"), as.numeric(seq_len(n)))
}

labels_of <- function(rows) vapply(rows$parts, paste, "", collapse = "/")

test_that("bars contain a module's weights from all collections, in descending order", {
  x <- drawn_table(
    c("batch_stats/Norm_0/mean", "params/Norm_0/scale", "params/Conv_0/kernel", "params/cls"),
    c(4, 5, 90, 1),
    collection = c("batch_stats", "params", "params", "params")
  )
  sizes <- module_sizes(x)
  expect_equal(labels_of(sizes), c("Conv_0", "Norm_0", "net"))
  expect_equal(sizes$trainable, c(90, 5, 1))
  expect_equal(sizes$non_trainable, c(0, 4, 0))
  x$layer[[3]] <- "other"
  expect_equal(labels_of(module_sizes(x)), c("other/Conv_0", "net/Norm_0", "net"))
})

test_that("bars for many modules group blocks or the smallest modules, and keep all parameters", {
  x <- blocks(20)
  sizes <- module_sizes(x)
  expect_equal(labels_of(sizes)[1:3], c("head", "Encoder/block_1", "Encoder/block_2"))
  expect_equal(sizes$trainable, c(100, rep(24, 20)))
  expect_match(size_subtitle(sizes), "The 41 modules are grouped into these 21", fixed = TRUE)

  sizes <- module_sizes(blocks(40))
  expect_equal(labels_of(sizes)[c(2, 30)], c("Encoder/block_1", "other (12 modules)"))
  expect_equal(sum(sizes$trainable), 100 + 40 * 24)

  sizes <- module_sizes(flat(500))
  expect_equal(nrow(sizes), 30)
  expect_equal(labels_of(sizes)[c(1, 30)], c("Dense_500", "other (471 modules)"))
  expect_equal(sum(sizes$trainable, sizes$non_trainable), sum(1:500))
  # Only the bar of the other modules is cut, and its label says so.
  expect_equal(sizes$cut[[30]] * sizes$trainable[[30]], 1.5 * 500)
  expect_equal(sizes$cut[-30], rep(1, 29))
  expect_equal(grep("cut", size_labels(sizes)), 30)
})

test_that("of many weights, the nonfinite and then the largest are drawn, in their order", {
  x <- flat(500)
  x$n_nonfinite[[7]] <- 3
  values <- weight_values(x)
  expect_equal(labels_of(values), paste0("Dense_", c(7, 462:500), "/kernel"))
  expect_match(
    value_subtitle(values),
    "^40 of 500 weights in params: those with values that are not finite, then the largest"
  )
  expect_equal(nonfinite_labels(values)[1:2], c("3 not finite", ""))
  expect_match(value_subtitle(weight_values(flat(5))), "^5 weights in params\n")
})

test_that("the axis for values is linear unless a few values are far larger", {
  expect_equal(value_scale(c(-1, 0.5, 2, NaN, Inf))$place(3), 3)
  far <- value_scale(c(rep(c(-1, 1), 10), 1e4))
  expect_match(far$title, "logarithmic")
  expect_equal(far$labels, c("-1", "0", "1", "10", "100", "1000", "10000"))
  expect_equal(far$at, asinh(c(-1, 0, 1, 10, 100, 1000, 10000)))
  expect_equal(value_scale(c(0, NaN))$place(0), 0)
})

test_that("a long label shortens its longest names first", {
  parts <- c("Transformer", "encoderblock_11", "MultiHeadDotProductAttention_1", "query")
  expect_equal(as_label(parts, 100), paste(parts, collapse = "/"))
  expect_equal(as_label(parts, 50), "Transformer/encoderblock_11/MultiHe..ntion_1/query")
  expect_lte(nchar(as_label(parts, 12)), 12)
  expect_match(as_label(parts, 12), "^[.][.]/.*query$")
})

test_that("short_count() returns short, correct counts", {
  counts <- c(0, 5, 999, 1000, 12345, 7.09e6, 2^32, 3e13)
  expect_equal(short_count(counts), c("0", "5", "999", "1k", "12.3k", "7.09M", "4.29G", "30T"))
})

test_that("plots of any size are silent and restore the margins", {
  odd <- flat(5)
  odd[1, c("mean", "sd", "min", "max")] <- NaN
  odd$n_nonfinite[[1]] <- 2
  empty <- drawn_table("params/none", 0)
  empty[c("mean", "sd", "min", "max")] <- NaN
  far <- drawn_table(
    paste0("params/Dense_", 1:60, "/kernel"),
    rep(1, 60),
    reach = c(rep(1, 59), 1e5)
  )
  for (inches in c(3, 7, 12)) {
    withr::with_pdf(withr::local_tempfile(fileext = ".pdf"), width = inches, height = inches, {
      before <- graphics::par("mar")
      for (x in list(flat(1), odd, empty, far, blocks(20), flat(500))) {
        expect_silent(plot(x))
        expect_silent(plot(x, "values"))
        expect_silent(plot(x, "values", main = "Mine", xlab = ""))
      }
      expect_identical(graphics::par("mar"), before)
      expect_identical(expect_invisible(plot(odd)), odd)
    })
  }
})

on_eight_devices <- function(x) {
  x$sharding <- rep_len(c("model", "replicated"), nrow(x))
  x$devices <- rep(8, nrow(x))
  x$bytes_per_device <- x$bytes / rep_len(c(4, 1), nrow(x))
  x
}

test_that("what is split over devices has colors of its own, also in the bar of the others", {
  x <- on_eight_devices(drawn_table(
    c("batch_stats/Norm_0/mean", "batch_stats/Norm_0/var", "params/Norm_0/scale", "params/cls"),
    c(4, 5, 90, 1),
    collection = c("batch_stats", "batch_stats", "params", "params")
  ))
  sizes <- module_sizes(x)
  expect_equal(
    size_kinds(sizes),
    list(
      trainable = c(0, 1),
      "trainable, split" = c(90, 0),
      "non-trainable" = c(5, 0),
      "non-trainable, split" = c(4, 0)
    )
  )
  expect_match(size_subtitle(sizes), "91 trainable, 9 non-trainable; 94 split", fixed = TRUE)
  expect_identical(
    as.character(value_kinds(weight_values(x))),
    c("non-trainable, split", "non-trainable", "trainable, split", "trainable")
  )
  x <- on_eight_devices(flat(500))
  sizes <- module_sizes(x)
  expect_equal(sum(sizes$trainable_split), sum(x$size[is_split(x)]))
  expect_named(size_kinds(module_sizes(flat(3))), undistributed_kinds)

  drawn <- withr::local_tempfile(fileext = ".pdf")
  grDevices::pdf(drawn)
  withr::defer(grDevices::dev.off())
  expect_no_error(plot(x))
  expect_no_error(plot(x, "values"))
  skip_if_not_installed("ggplot2")
  fills <- ggplot2::layer_data(ggplot2::autoplot(x))$fill
  expect_setequal(unique(fills), kind_colors)
  colors <- ggplot2::layer_data(ggplot2::autoplot(x, "values"), 2)$colour
  expect_setequal(unique(colors), kind_colors[c("trainable", "trainable, split")])
})

test_that("autoplot() draws the same bars and values", {
  skip_if_not_installed("ggplot2")
  odd <- flat(5)
  odd[1, c("mean", "sd", "min", "max")] <- NaN
  odd$n_nonfinite[[1]] <- 2
  withr::local_pdf(withr::local_tempfile(fileext = ".pdf"))
  for (x in list(odd, blocks(20), flat(500))) {
    for (what in c("size", "values")) {
      drawn <- ggplot2::autoplot(x, what)
      expect_s3_class(drawn, "ggplot")
      expect_silent(print(drawn))
    }
  }
  bars <- ggplot2::layer_data(ggplot2::autoplot(blocks(20)))
  expect_equal(sum(bars$xmax - bars$xmin), sum(blocks(20)$size))
})

test_that("plotting a table without weights or columns is an error", {
  x <- flat(3)
  expect_snapshot(error = TRUE, {
    plot(x[setdiff(names(x), "sd")], "values")
    plot(x["path"])
    plot(x[0, ])
    plot(x, "shape")
  })
})
