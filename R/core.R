# The boundary between R and Python. `inst/python/kerasflax/_r.py` lists everything that R calls,
# and only this file calls it.

# The Python classes that R knows, under the names that reticulate gives them.
python_classes <- list(
  error = "kerasflax.KerasFlaxError",
  flax_layer = "kerasflax.FlaxLayer",
  flax_module = c(
    "flax.linen.module.Module", "flax.nnx.module.Module", "kerasflax.LazyModule"
  ),
  keras_tensor = "keras.src.backend.common.keras_tensor.KerasTensor",
  layer = "keras.src.layers.layer.Layer",
  model = "keras.src.models.model.Model",
  sequential = "keras.src.models.sequential.Sequential"
)

is_instance <- function(x, class) inherits(x, python_classes[[class]])

# The words that differ between R's and Python's messages. Python's table is `_host.WORDS`.
core_words <- list(
  none = "NULL",
  dict = "a named list",
  list = "a vector",
  true = "TRUE",
  false = "FALSE",
  "callback model" = "`self$model`",
  variables = "`flax_variables(layer)`",
  params = "`list(params = list(...))`",
  method = "a `function(module, inputs, training)`",
  use_running_average = "`use_running_average = !training`",
  update_stats = "`update_stats = training`",
  "batch shape" = "`keras_input(batch_shape = ...)`",
  install = paste(
    "Install it: `reticulate::py_require(\"{0}\")` before Python is used,",
    "or `reticulate::py_install(\"{0}\")`"
  ),
  import = "`reticulate::import(\"{0}\")`",
  "custom object" = "`custom_objects = list({0} = {1})`",
  # The R variable can have another name than the class or function that it holds, as for
  # `digit_net <- flax_module("DigitNet", ...)`.
  "own custom object" =
    "`custom_objects = list({0} = x)`, where `x` is the R variable that holds it",
  entry = "`list(\"{0}\" = ...)`",
  rename = "`rename = c(\"{0}\" = \"{1}\")`",
  transpose = "`transpose = list(\"**/kernel\" = c(3, 4, 2, 1))`",
  axes = "1, 2, ...",
  mesh = "`mesh = c(batch = 2, model = 4)`",
  layout = "`layout = list(\"**/kernel\" = c(NA, \"model\"))`",
  rules = "`rules = list(mlp = \"model\")`",
  devices = "`devices = c(\"gpu:0\", \"gpu:1\")`",
  "no axis" = "NA",
  auto = "`auto = TRUE`",
  whole = "`layout = list(\"**/{0}\" = NA)`",
  unchecked = "`checked = FALSE`",
  "functional model" = "`keras_model(inputs, outputs)`",
  "to write" = "`object`",
  checkpoint = "`flax_write(model, \"checkpoint\")`",
  register = "`keras3::register_keras_serializable()`",
  "lazy module" = "`flax_lazy()`",
  "rename away" = "`rename = c(\"{0}\" = NA)`",
  "skip mismatch" = "`skip_mismatch = TRUE`",
  "instead of Layer" = paste(
    "Use a Flax module such as `nn$Dense()`, or a function such as `op_relu()`, or use the Keras",
    "layer before or after the Flax layer."
  ),
  "instead of Variable" = "Create it with `self$param()`, or as an `nnx$Param()`.",
  "instead of SeedGenerator" =
    "Draw random numbers with `jax$random`, and a key from `self$make_rng()` or `rngs`.",
  "load weights" = "`load_model_weights()`",
  attribute = "$",
  "true or false" = "TRUE or FALSE",
  containers = "lists or named lists",
  return = paste(
    "End the method with the output: an R function returns its last value, and a `for` loop, for",
    "example, returns NULL."
  ),
  bidirectional = "`layer_bidirectional()`",
  "optional input" = "`keras_input(optional = TRUE)`"
)

# Declares the core, which reticulate imports at its first use. The path stays on Python's search
# path, because reticulate does not add it again if the first import fails and another follows.
load_core <- function(path) {
  add_path <- function() reticulate::import("sys", convert = FALSE)$path$insert(0L, path)
  if (reticulate::py_available()) {
    # Python is already running, so import the core now.
    add_path()
    the$core <- reticulate::import("kerasflax._r")
    register_r()
  } else {
    hooks <- list(before_load = add_path, on_load = register_r, on_error = abort_without_core)
    the$core <- reticulate::import("kerasflax._r", delay_load = hooks)
  }
}

abort_without_core <- function(error) {
  abort_kerasflax(
    c(
      "Python cannot import what kerasflax needs.",
      # Only the first line is about the problem: reticulate adds how to see Python's traceback.
      x = escape_braces(strsplit(conditionMessage(error), "\n")[[1]][[1]]),
      i = "Run {.code library(kerasflax)} before Python is used, or install flax, jax and keras in \
      the Python that {.code reticulate::py_config()} shows."
    ),
    cause = "package",
    call = NULL
  )
}

# Registers what Python needs to know about R's functions, errors and words.
register_r <- function() {
  the$core$register(
    formals = r_formals,
    shown = r_shown,
    advice = r_advice,
    function_of_name = r_method_of_name,
    name_of_function = r_name_of_method,
    define_modules = r_define_modules,
    built = r_built,
    words = core_words
  )
}

# Shows a user who waits how far the build of a large layer is. An interrupted build leaves its bar
# to the next one.
r_built <- function(done, total) {
  if (!rlang::is_interactive()) {
    return(invisible())
  }
  # cli evaluates the text of the bar in this environment. No call ends the bar by returning.
  env <- rlang::current_env()
  the$bar <- the$bar %||%
    cli::cli_progress_bar("Building", format_done = NULL, .auto_close = FALSE, .envir = env)
  cli::cli_progress_update(set = done, total = total, id = the$bar, .envir = env)
  if (done >= total) {
    cli::cli_progress_done(id = the$bar, .envir = env)
    the$bar <- NULL
  }
}

# A function or class of the core. With `convert = FALSE`, it returns Python objects.
core_function <- function(name, convert = TRUE) {
  f <- do.call(`$`, list(the$core, name))
  if (convert) {
    f
  } else {
    do.call(`$`, list(reticulate::import("kerasflax._r", convert = FALSE), name))
  }
}

# Calls a function or class of the core. Its errors become R conditions.
call_core <- function(.name, ..., .convert = TRUE, .otherwise = NULL, .call = caller_env()) {
  with_r_conditions(
    rlang::exec(core_function(.name, .convert), ...),
    otherwise = .otherwise,
    call = .call
  )
}
