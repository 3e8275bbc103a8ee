#' Distribute models over several devices
#'
#' @description
#' `flax_distribute()` sets how Keras distributes the models that you create from then on. The rest
#' of the script stays the same. Call it before you create layers, models and optimizers.
#'
#' The batch is split along the mesh's axis `batch`, or along its first axis if none has this name.
#' If the mesh has this axis alone, and nothing else is given, every device holds all weights (data
#' parallelism).
#'
#' # Where a weight lives
#' The first of these rules that places a variable counts:
#'
#' 1. `layout`, by pattern of the path (see [flax_freeze()]). Begin patterns with `**/`: these paths
#'    start with the names of the models that contain the layer, `sequential/mlp/params/...`.
#' 2. The axis names that the module gives its weights: in Linen `nn$with_partitioning()`, and
#'    `nn$with_logical_partitioning()` with `rules`; in NNX `nnx$with_partitioning()`. Axes that the
#'    mesh does not have split nothing.
#' 3. With `auto = TRUE`, a weight of two or more dimensions and at least 4096 elements is split
#'    along the mesh's axis `model`, or else along its last axis: the largest dimension of the
#'    weight that this axis divides. Of equal dimensions, it is the last.
#' 4. The variable is on every device.
#'
#' The variables of optimizers follow their weights. State, such as batch statistics, follows rules
#' 1, 2 and 4. Constraints on activations, such as `nn$with_logical_constraint()`, take effect.
#'
#' # Batches
#' Make the size of each batch, also of the last one, a multiple of the size of the batch axis:
#' Keras splits all batches of an epoch alike. Otherwise each device computes all batches whole, and
#' a warning says so. Of a generator, only the first batch is known; JAX raises an error for a later
#' one that the axis does not divide.
#'
#' # What you see
#' [flax_parameters()] shows where each weight is. If the mesh has more than a batch axis, a layer
#' warns when it is built: it names its variables that every device holds whole, if they have at
#' least 4096 elements and are larger than 1% of the layer. A pattern in `layout` with `NA` leaves a
#' variable whole without the warning.
#'
#' # Several processes
#' Several processes, for example on several machines, run the same script. Each begins with
#' `jax$distributed$initialize(address, processes, id)`, before `library(kerasflax)`, and calls
#' [keras3::set_random_seed()] after that. Here `jax` is `reticulate::import("jax")`, `address` is
#' that of the first process, as in `"10.0.0.1:12345"`, and `id` counts from 0. (keras3 uses a
#' device as soon as Python starts, and JAX then refuses to join processes.) The mesh spans the
#' devices of all processes.
#'
#' Each process passes its own rows of each batch to `fit()` and `evaluate()`, and its share of the
#' batch as `batch_size`. Processes whose devices compute the same rows pass the same ones.
#'
#' All processes must call [flax_write()], [flax_variables()] and [save_model()], which wait for
#' each other. All of them write an Orbax checkpoint, each its part. Any other file is written by
#' the first process. [save_model()] works if every process holds the whole model. `predict()` fails
#' unless every process holds the whole output: predict in one process, with weights from a file.
#'
#' If a process dies, the others end with an error. By default, JAX waits 100 seconds for a process
#' that is silent; `initialize(heartbeat_timeout_seconds = 10L)` sets this. To be able to resume,
#' call [save_model()] in all processes at the end of each epoch
#' (`callback_lambda(on_epoch_end = )`). A new run, on any number of devices, loads the model and
#' continues with `fit(initial_epoch = )`. If weights are split over processes, Keras's callback
#' `keras$callbacks$OrbaxCheckpoint(folder, save_on_background = FALSE)` saves weights and
#' optimizer (keras 3.15): the new run calls `model$optimizer$build(model$trainable_variables)` and
#' `model$load_weights(folder)`.
#'
#' @param mesh The size of each axis of the mesh of devices, by name, such as
#'   `c(batch = 2, model = 4)`. The sizes multiply to the number of devices to use. `NULL` ends the
#'   distribution.
#' @param layout A named list. The names are patterns of paths; the values are the mesh axes for the
#'   dimensions of the weight, with `NA` for a dimension that is not split:
#'   `list("**/Dense_0/kernel" = c(NA, "model"))`. If several patterns match a path, the last one
#'   counts.
#' @param rules The mesh axis for each logical axis, as in `list(mlp = "model", embed = NA)`. `NULL`
#'   uses Flax's own rules, which `nn$logical_axis_rules()` sets.
#' @param auto Whether to split large weights that neither `layout` nor the module places.
#' @param devices Names of the devices to use, such as `c("gpu:0", "gpu:1")`. `NULL` uses the first
#'   ones that Keras finds.
#'
#' @returns The distribution, a Python object, invisibly; or `NULL`. Errors in an argument have the
#'   class `kerasflax_error_argument`. A layout that does not fit is an error when the model is
#'   built (`kerasflax_error_shape`), and a pattern that matches nothing when the first batch is
#'   distributed (`kerasflax_error_argument`).
#'
#' @seealso [flax_parameters()] for where each weight is, `vignette("devices")`
#' @examplesIf kerasflax:::runs_examples()
#' # To try it on a CPU, simulate eight devices before Python starts:
#' # Sys.setenv(XLA_FLAGS = "--xla_force_host_platform_device_count=8")
#' flax <- reticulate::import("flax")
#' devices <- length(reticulate::import("jax")$devices())
#'
#' # Data parallelism on all devices
#' flax_distribute(c(batch = devices))
#' model <- keras_model_sequential(3) |>
#'   layer_flax_module_wrapper(flax$linen$Dense(8L))
#' flax_parameters(model)
#'
#' # Split the columns of each kernel over all devices
#' flax_distribute(
#'   c(batch = 1, model = devices),
#'   layout = list("**/kernel" = c(NA, "model"))
#' )
#' model <- keras_model_sequential(3) |>
#'   layer_flax_module_wrapper(flax$linen$Dense(8L * devices))
#' flax_parameters(model)
#'
#' flax_distribute(NULL)
#' @export
flax_distribute <- function(mesh, layout = NULL, rules = NULL, auto = FALSE, devices = NULL) {
  check_backend()
  check_unique_names(mesh)
  check_unique_names(layout)
  check_unique_names(rules)
  distribution <- call_core(
    "distribute",
    named_for_python(mesh, na_for_python),
    layout = named_for_python(layout, axes_for_python),
    rules = named_for_python(rules, axis_for_python),
    auto = na_for_python(auto),
    devices = if (is.atomic(devices) && !is.null(devices)) as.list(unname(devices)) else devices,
    .convert = FALSE
  )
  if (is.null(mesh)) invisible(NULL) else invisible(distribution)
}

# A dict would keep the last of several elements with the same name.
check_unique_names <- function(x, arg = rlang::caller_arg(x), call = caller_env()) {
  names <- if (!is_python_object(x)) names(x)
  if (anyDuplicated(names) || !all(nzchar(names))) {
    abort_kerasflax(
      c(
        "Each element of {.arg {arg}} must have a name of its own.",
        x = "The names are {.val {names}}."
      ),
      cause = "argument",
      call = call
    )
  }
  invisible(x)
}

# A named vector or list becomes a dict; the core refuses anything else.
named_for_python <- function(x, change) {
  if (is_python_object(x)) {
    x
  } else if (is.list(x) && length(x) == 0) {
    reticulate::dict()
  } else if (is.null(names(x))) {
    na_for_python(x)
  } else {
    lapply(as.list(x), change)
  }
}

# reticulate would convert NA to True.
na_for_python <- function(x) if (identical(x, NA)) NA_real_ else x

# The mesh axes of each dimension. NULL, or NA for every dimension, splits nothing.
axes_for_python <- function(axes) {
  if (is.atomic(axes) || is.list(axes)) lapply(unname(as.list(axes)), axis_for_python) else axes
}

# R writes NA for a dimension that is not split, and c("a", "b") in a list for two axes at once.
axis_for_python <- function(axis) {
  if (is.null(axis) || is.atomic(axis) && length(axis) == 1 && is.na(axis)) {
    NULL
  } else if (is.character(axis) && length(axis) > 1) {
    do.call(reticulate::tuple, as.list(unname(axis)))
  } else {
    axis
  }
}
