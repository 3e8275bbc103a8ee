test_that("flax_sown() returns the last eager call's values as nested lists of R arrays", {
  skip_without_flax()
  nn <- flax_linen()
  jnp <- reticulate::import("jax.numpy")
  Inner(nn$Module) %py_class% {
    `__call__` <- function(self, inputs) {
      self$sow("intermediates", "twice", inputs * 2)
      self$sow("intermediates", "twice", inputs * 4)
      self$sow("losses", "half", jnp$asarray(0.5))
      inputs
    }
  }
  Outer(nn$Module) %py_class% {
    `__call__` <- nn$compact(\(self, inputs) {
      self$sow("metrics", "n", jnp$asarray(3), init_fn = \() 0, reduce_fn = \(a, b) a + b)
      Inner(name = "inner")(inputs)
    })
  }
  layer <- layer_flax_module_wrapper(module = Outer())
  x <- matrix(1:6, 2)
  layer(x)
  sown <- flax_sown(layer)
  expect_equal(sown$intermediates, list(inner = list(twice = list(x * 2, x * 4))))
  expect_equal(as.vector(sown$losses$inner$half[[1]]), 0.5)
  expect_equal(as.vector(unlist(sown$metrics$n)), 3)
  expect_equal(as.array(layer$losses[[1]]), 0.5, ignore_attr = TRUE)
})

test_that("flax_sown() is an empty list if nothing was sown, and an error for other objects", {
  skip_without_flax()
  layer <- layer_flax_module_wrapper(module = flax_linen()$Dense(2L))
  expect_equal(flax_sown(layer), setNames(list(), character()), ignore_attr = TRUE)
  expect_snapshot(error = TRUE, {
    flax_sown(layer_dense(units = 2))
    flax_sown(3)
  })
})
