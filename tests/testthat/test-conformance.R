# Every behaviour of a case, one after the other on one layer: with a layer of its own each would compile all of it again.
for_each_case(function(name, make) {
  delayedAssign("case", make())
  delayedAssign("layer", layer_of(case))

  test_that(paste0(name, ": initial variables are those of plain init"), {
    begin_conformance_test()
    expected <- plain_init(case)
    kept <- layer$flax_variables
    expect_setequal(names(kept), setdiff(names(expected), case$sown))
    expect_same_tree(kept, expected[names(kept)], tolerance = 1e-6)
  })

  for (mode in c("training", "inference")) {
    test_that(paste0(name, ": outputs, state and sown values are those of plain apply in ", mode), {
      begin_conformance_test()
      before <- layer$flax_variables
      keys <- keys_of(layer, case$streams[[mode]])
      outputs <- layer(case$inputs, training = mode == "training")
      plain <- plain_apply(case, before, case$inputs, mode, keys)
      expect_same_tree(outputs, plain$outputs)
      expect_identical(names(leaves_of(outputs)), names(leaves_of(plain$outputs)))
      state <- plain$written[intersect(names(plain$written), names(before))]
      expect_same_tree(layer$flax_variables, utils::modifyList(before, state))
      sown <- plain$written[intersect(names(plain$written), case$sown)]
      expect_equal(rapply(flax_sown(layer), numbers, how = "unlist"), rapply(sown, numbers, how = "unlist"), tolerance = 1e-5)
    })
  }

  test_that(paste0(name, ": symbolic outputs agree with eager ones"), {
    begin_conformance_test()
    symbolic <- leaves_of(layer(keras_inputs(case, case$inputs)))
    eager <- leaves_of(without_null(layer(case$inputs)))
    expect_identical(names(symbolic), names(eager))
    for (path in names(eager)) {
      expected <- as.list(sizes(eager[[path]]))
      if (case$any_batch) expected[1] <- list(NULL)
      expect_identical(symbolic[[path]]$shape, expected)
      expect_identical(symbolic[[path]]$dtype, dtype_of(eager[[path]]))
    }
  })

  test_that(paste0(name, ": fit() takes the step that plain Flax takes"), {
    begin_conformance_test()
    before <- layer$flax_variables
    keys <- keys_of(layer, case$streams$training)
    plain <- plain_step(case, before, case$inputs, keys)
    inputs <- keras_inputs(case, case$inputs)
    model <- keras_model(inputs, score(layer(inputs)))
    compile(model, optimizer_sgd(learning_rate), "mse")
    n <- sizes(leaves_of(case$inputs)[[1]])[[1]]
    history <- fit(model, case$inputs, matrix(0, n, 1), batch_size = n, shuffle = FALSE, verbose = 0)
    expect_true(is.finite(history$metrics$loss))
    expect_equal(history$metrics$loss, plain$loss, tolerance = 1e-4)
    expect_same_tree(layer$flax_variables, plain$variables, tolerance = 1e-4)
    if (!is.null(before$params)) {
      expect_false(isTRUE(all.equal(params_of(layer$flax_variables), params_of(before))))
    }
  })

  test_that(paste0(name, ": predict() on another batch size is plain apply"), {
    begin_conformance_test()
    inputs <- if (case$any_batch) rows_of(case$inputs, c(1:4, 2:4)) else case$inputs
    before <- layer$flax_variables
    keys <- keys_of(layer, case$streams$inference)
    tensors <- keras_inputs(case, case$inputs)
    model <- keras_model(tensors, layer(tensors))
    got <- leaves_of(predict(model, inputs, verbose = 0))
    expected <- leaves_of(without_null(plain_apply(case, before, inputs, "inference", keys)$outputs))
    # Keras sorts what it returns by name.
    expect_setequal(names(got), names(expected))
    got <- got[names(expected)]
    expect_equal(lapply(got, as.vector), lapply(expected, numbers), tolerance = 1e-5)
    expect_equal(lapply(got, dim), lapply(expected, sizes))
  })
})
