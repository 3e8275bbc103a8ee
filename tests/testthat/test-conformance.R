# All tests of a case use the same layer, because each new layer would be compiled again.
for_each_case(function(name, make) {
  delayedAssign("case", make())
  delayedAssign("layer", layer_of(case))

  test_that(paste0(name, ": initial variables match plain init"), {
    skip_without_flax()
    expected <- plain_init(case)
    kept <- layer$flax_variables
    expect_setequal(names(kept), setdiff(names(expected), case$sown))
    expect_same_tree(kept, expected[names(kept)], tolerance = 1e-6)
  })

  for (mode in c("training", "inference")) {
    test_that(paste0(name, ": outputs, state and sown values match plain apply in ", mode), {
      skip_without_flax()
      before <- layer$flax_variables
      keys <- keys_of(layer, case$streams[[mode]])
      outputs <- layer(case$inputs, training = mode == "training")
      plain <- plain_apply(case, before, case$inputs, mode, keys)
      expect_same_tree(outputs, plain$outputs)
      expect_identical(names(leaves_of(outputs)), names(leaves_of(plain$outputs)))
      state <- plain$written[intersect(names(plain$written), names(before))]
      expect_same_tree(layer$flax_variables, utils::modifyList(before, state))
      sown <- plain$written[intersect(names(plain$written), case$sown)]
      expect_equal(
        rapply(flax_sown(layer), numbers, how = "unlist"),
        rapply(sown, numbers, how = "unlist"),
        tolerance = 1e-5
      )
    })
  }

  test_that(paste0(name, ": symbolic outputs match eager outputs"), {
    skip_without_flax()
    symbolic <- leaves_of(layer(keras_inputs(case$inputs)))
    eager <- leaves_of(without_null(layer(case$inputs)))
    expect_identical(names(symbolic), names(eager))
    for (path in names(eager)) {
      expect_identical(symbolic[[path]]$shape, c(list(NULL), as.list(sizes(eager[[path]])[-1])))
      expect_identical(symbolic[[path]]$dtype, dtype_of(eager[[path]]))
    }
  })

  test_that(paste0(name, ": fit() takes the same step as plain Flax"), {
    skip_without_flax()
    before <- layer$flax_variables
    keys <- keys_of(layer, case$streams$training)
    plain <- plain_step(case, before, case$inputs, keys)
    inputs <- keras_inputs(case$inputs)
    model <- keras_model(inputs, score(layer(inputs)))
    compile(model, optimizer_sgd(learning_rate), "mse")
    n <- sizes(leaves_of(case$inputs)[[1]])[[1]]
    history <- fit(
      model,
      case$inputs,
      matrix(0, n, 1),
      batch_size = n,
      shuffle = FALSE,
      verbose = 0
    )
    expect_true(is.finite(history$metrics$loss))
    expect_equal(history$metrics$loss, plain$loss, tolerance = 1e-4)
    expect_same_tree(layer$flax_variables, plain$variables, tolerance = 1e-4)
    if (!is.null(before$params)) {
      expect_false(isTRUE(all.equal(params_of(layer$flax_variables), params_of(before))))
    }
  })

  test_that(paste0(name, ": predict() on another batch size matches plain apply"), {
    skip_without_flax()
    inputs <- rows_of(case$inputs, c(1:4, 2:4))
    before <- layer$flax_variables
    keys <- keys_of(layer, case$streams$inference)
    tensors <- keras_inputs(case$inputs)
    model <- keras_model(tensors, layer(tensors))
    got <- leaves_of(predict(model, inputs, verbose = 0))
    expected <- leaves_of(without_null(
      plain_apply(case, before, inputs, "inference", keys)$outputs
    ))
    # Keras sorts its outputs by name.
    expect_setequal(names(got), names(expected))
    got <- got[names(expected)]
    expect_equal(lapply(got, as.vector), lapply(expected, numbers), tolerance = 1e-5)
    expect_equal(lapply(got, dim), lapply(expected, sizes))
  })
})

test_that("linen: the module receives Keras's computed mask as `mask`", {
  skip_without_flax()
  module <- masked()
  layer <- layer_flax_module_wrapper(module = module)
  x <- floats(4, 5, 2)
  x[, 2:3, ] <- 0
  input <- keras_input(c(5, 2))
  model <- keras_model(input, input |> layer_masking(0) |> layer())
  got <- as.vector(predict(model, x, verbose = 0))
  expected <- module$apply(layer$flax_variables, as_jax(x), mask = as_jax(x[, , 1] != 0))
  expect_equal(got, numbers(expected), tolerance = 1e-5)
  expect_false(isTRUE(all.equal(got, numbers(module$apply(layer$flax_variables, as_jax(x))))))
})

test_that("linen: a layer used twice applies one set of weights twice", {
  skip_without_flax()
  module <- flax_linen()$Dense(3L)
  layer <- layer_flax_module_wrapper(module = module)
  input <- keras_input(3)
  model <- keras_model(input, input |> layer() |> layer())
  compile(model, optimizer_sgd(learning_rate), "mse")
  x <- floats(4, 3)
  fit(model, x, x, verbose = 0)
  variables <- layer$flax_variables
  expected <- module$apply(variables, module$apply(variables, as_jax(x)))
  expect_equal(as.vector(predict(model, x, verbose = 0)), numbers(expected), tolerance = 1e-5)
  expect_length(model$weights, 2)
})

test_that("linen: two layers with the same module have separate weights", {
  skip_without_flax()
  module <- coder()
  first <- layer_flax_module_wrapper(module = module, method = "encode", seed = 1)
  second <- layer_flax_module_wrapper(module = module, seed = 2)
  input <- keras_input(3)
  model <- keras_model(input, input |> first() |> second())
  compile(model, optimizer_sgd(learning_rate), "mse")
  x <- floats(4, 3)
  fit(model, x, x, verbose = 0)
  expected <- module$apply(
    second$flax_variables,
    module$apply(first$flax_variables, as_jax(x), method = "encode")
  )
  expect_equal(as.vector(predict(model, x, verbose = 0)), numbers(expected), tolerance = 1e-5)
  expect_length(model$weights, 6)
  expect_false(isTRUE(all.equal(
    params_of(first$flax_variables),
    params_of(second$flax_variables)[1:2]
  )))
})
