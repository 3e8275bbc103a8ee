#' Report versions, backend, devices and problems
#'
#' @description
#' `kerasflax_sitrep()` prints a situation report: the versions of R, Python and all packages,
#' Keras's backend and who chose it, the devices that JAX sees, and where Python comes from. For
#' each problem that it finds, it says what to type. Put its output into every issue that you
#' report.
#'
#' The report never fails. Without Python, it says so, and why Python did not start. Your home
#' directory is printed as `~`.
#'
#' # Side effects
#' The report starts Python, and imports JAX and Keras, as the first layer of a session does. After
#' that, another Python or backend needs a new session. A script that connects several processes
#' does so first (see [flax_distribute()]). `start_python = FALSE` only reports on a Python that is
#' running.
#'
#' @param start_python Whether to start Python if it is not running.
#' @param x The result of `kerasflax_sitrep()`.
#' @param ... Not used.
#'
#' @returns A list of class `kerasflax_sitrep`, invisibly:
#' * `r`, `os` and `r_packages`: the versions of R, of the system and of R packages;
#' * `python`: a list with `version`, `path`, `source` (what selected this Python), `is_ephemeral`,
#'   `is_environment` (whether it is a virtual or a conda environment) and `error` (why there is
#'   none);
#' * `packages`: the versions of Python packages, `NA` for those that are not installed;
#' * `backend`: a list with `name`, `source` and `is_loaded`;
#' * `devices`: a data frame of the devices that JAX sees, with `platform`, `kind` and `count`;
#'   `machine_gpus`: the NVIDIA GPUs in the machine;
#' * `core`: `"ok"`, the error at the import of kerasflax's Python code, or `NA` if it was not
#'   tried;
#' * `variables`: the environment variables that matter and are set;
#' * `findings`: a data frame with a row for each problem: `problem` and `advice`.
#'
#' @seealso [reticulate::py_config()], [keras3::use_backend()]
#'
#' @examplesIf kerasflax:::runs_examples()
#' kerasflax_sitrep()
#' @export
kerasflax_sitrep <- function(start_python = TRUE) {
  check_flag(start_python)
  x <- without_home(new_sitrep(start_python))
  print(x)
  invisible(x)
}

required_packages <- c("flax", "jax", "jaxlib", "keras", "numpy")
optional_packages <- c(
  "optax",
  "orbax-checkpoint",
  "safetensors",
  "tensorflow",
  "torch",
  "jax-cuda-plugin"
)
sitrep_variables <- c(
  "RETICULATE_PYTHON",
  "KERAS_BACKEND",
  "JAX_PLATFORMS",
  "CUDA_VISIBLE_DEVICES",
  "XLA_FLAGS"
)

new_sitrep <- function(start_python) {
  python <- or_error(python_facts(start_python), \(error) list(error = error))
  is_running <- is.null(python$error)
  backend <- or_error(backend_facts(), \(error) list(name = NA, source = error, is_loaded = FALSE))
  packages <- python_versions(c(required_packages, optional_packages), is_running)
  x <- list(
    r = paste(R.version$major, R.version$minor, sep = "."),
    os = or_error(paste0(utils::osVersion, " (", R.version$platform, ")"), identity),
    r_packages = r_versions(c("kerasflax", "keras3", "reticulate")),
    python = python,
    packages = packages,
    backend = backend,
    devices = NULL,
    devices_error = NULL,
    machine_gpus = or_error(machine_gpus(), \(error) character()),
    core = NA_character_,
    variables = Filter(Negate(is.na), Sys.getenv(sitrep_variables, unset = NA, names = TRUE))
  )
  if (!is.na(packages[["jax"]])) {
    x$devices <- or_error(device_facts(), identity)
    if (is.character(x$devices)) {
      x$devices_error <- x$devices
      x["devices"] <- list(NULL)
    }
  }
  # With another backend, the core cannot be imported, and Keras would load that backend.
  if (identical(backend$name, "jax") && !anyNA(packages[names(python_floors)])) {
    x$core <- or_error(
      {
        core_function("FlaxLayer")
        "ok"
      },
      identity
    )
  }
  x$findings <- or_error(sitrep_findings(x), \(error) new_finding("The report failed", error))
  structure(x, class = "kerasflax_sitrep")
}

# The value of an expression, or what `handle` makes of the message of its error. Libraries that are
# imported may warn.
or_error <- function(value, handle) {
  tryCatch(
    suppressMessages(suppressWarnings(value)),
    error = function(condition) handle(short_message(condition))
  )
}

# The message of an error without the lines that say how to see more of it.
short_message <- function(condition) {
  lines <- unlist(strsplit(cli::ansi_strip(conditionMessage(condition)), "\n", fixed = TRUE))
  lines <- trimws(grep("py_last_error|^\\s*$", lines, value = TRUE, invert = TRUE))
  paste(utils::head(lines, 4), collapse = " ")
}

r_versions <- function(packages) {
  vapply(packages, \(name) or_error(as.character(utils::packageVersion(name)), \(e) NA), "")
}

# Python ------------------------------------------------------------------------------------------

python_facts <- function(start) {
  if (!start && !reticulate::py_available()) {
    return(list(error = "It has not been started."))
  }
  config <- reticulate::py_config()
  is_ephemeral <- isTRUE(config$ephemeral)
  list(
    version = sub(" .*", "", config$version_string),
    path = config$python,
    source = python_source(config, is_ephemeral),
    is_ephemeral = is_ephemeral,
    is_environment = is_environment(config),
    error = NULL
  )
}

is_environment <- function(config) {
  isTRUE(as.logical(config$conda)) ||
    isTRUE(config$anaconda) ||
    file.exists(file.path(dirname(dirname(config$python)), "pyvenv.cfg"))
}

python_source <- function(config, is_ephemeral) {
  if (is_ephemeral) {
    "py_require(): an environment that reticulate created"
  } else if (rlang::is_string(config$forced) && nzchar(config$forced)) {
    config$forced
  } else if (rlang::is_string(config$virtualenv) && nzchar(config$virtualenv)) {
    "a virtual environment that reticulate found"
  } else if (isTRUE(as.logical(config$conda)) || isTRUE(config$anaconda)) {
    "a conda environment that reticulate found"
  } else {
    "a Python that reticulate found"
  }
}

# From the packages' metadata, so that a broken or slow package need not be imported.
python_versions <- function(packages, is_running) {
  version <- function(name) {
    or_error(reticulate::import("importlib.metadata")$version(name), \(error) NA_character_)
  }
  # A package has more than one name if builds of it are published separately.
  names <- list(
    tensorflow = c("tensorflow", "tensorflow-cpu", "tensorflow-macos"),
    "jax-cuda-plugin" = c("jax-cuda13-plugin", "jax-cuda12-plugin")
  )
  vapply(
    rlang::set_names(packages),
    \(name) {
      found <- if (is_running) unlist(lapply(names[[name]] %||% name, version))
      c(found[!is.na(found)], NA_character_)[[1]]
    },
    ""
  )
}

# The backend and the devices ---------------------------------------------------------------------

# `.onLoad()` calls this: later, the choices of keras3, the user and kerasflax look alike.
remember_backend <- function() {
  before <- Sys.getenv("KERAS_BACKEND")
  the$backend <- if (is_keras_loaded()) {
    list(name = config_backend(), source = "Keras, loaded before kerasflax")
  } else if (before %in% c("", "tensorflow")) {
    list(name = "jax", source = "kerasflax, because no other was chosen")
  } else {
    list(name = before, source = "KERAS_BACKEND, set before kerasflax was loaded")
  }
}

backend_facts <- function() {
  is_loaded <- is_keras_loaded()
  name <- if (is_loaded) config_backend() else Sys.getenv("KERAS_BACKEND")
  source <- if (identical(name, the$backend$name)) {
    the$backend$source
  } else {
    "KERAS_BACKEND or use_backend(), after kerasflax was loaded"
  }
  list(name = name, source = source, is_loaded = is_loaded)
}

device_facts <- function() {
  devices <- reticulate::import("jax")$devices()
  platform <- vapply(devices, \(device) device$platform, "")
  kind <- vapply(devices, \(device) device$device_kind, "")
  key <- paste(platform, kind, sep = "\n")
  first <- which(!duplicated(key))
  data.frame(
    platform = platform[first],
    kind = kind[first],
    count = vapply(first, \(i) sum(key == key[[i]]), 1L)
  )
}

# The names of the NVIDIA GPUs in the machine, whether or not JAX uses them.
machine_gpus <- function() {
  program <- Sys.which("nvidia-smi")
  if (!nzchar(program)) {
    return(character())
  }
  lines <- system2(program, "-L", stdout = TRUE, stderr = FALSE, timeout = 20)
  lines <- grep("^GPU [0-9]+:", lines, value = TRUE)
  sub("^GPU [0-9]+: *", "", sub(" *\\(UUID.*", "", lines))
}

# The findings ------------------------------------------------------------------------------------

new_finding <- function(problem, advice) data.frame(problem = problem, advice = advice)

sitrep_findings <- function(x) {
  findings <- c(
    list(new_finding(character(), character())),
    python_findings(x),
    package_findings(x),
    list(backend_finding(x), core_finding(x), device_finding(x))
  )
  do.call(rbind, findings)
}

python_findings <- function(x) {
  named <- x$variables["RETICULATE_PYTHON"]
  if (is.null(x$python$error)) {
    if (isTRUE(numeric_version(x$python$version, strict = FALSE) < python_floor)) {
      return(list(new_finding(
        paste0("Python ", x$python$version, " is too old: Flax needs ", python_floor, "."),
        if (x$python$is_ephemeral) {
          paste0(
            "Restart R, and type `reticulate::py_require(python_version = \">=",
            python_floor,
            "\")` before Python is used."
          )
        } else {
          paste("Install a newer Python.", own_environment("With it,"))
        }
      )))
    }
    return(list())
  }
  if (x$python$error == "It has not been started.") {
    return(list(new_finding("Python has not been started.", "Type `kerasflax_sitrep()`.")))
  }
  list(new_finding(
    paste("Python did not start:", x$python$error),
    if (!is.na(named) && !file.exists(named)) {
      paste(
        "RETICULATE_PYTHON names a file that does not exist. Restart R, and type",
        "`Sys.unsetenv(\"RETICULATE_PYTHON\")`, or set it to an existing Python, before",
        "`library(kerasflax)`. (It may be set in ~/.Renviron.)"
      )
    } else {
      paste(
        "Restart R with a connection to the internet, so that reticulate can install Python.",
        own_environment("Or")
      )
    }
  ))
}

python_floor <- "3.11"

package_findings <- function(x) {
  if (!is.null(x$python$error)) {
    return(list())
  }
  problem_of <- function(name) {
    version <- x$packages[[name]]
    floor <- python_floors[[name]]
    if (is.na(version)) {
      paste0("The Python package ", name, " is not installed.")
    } else if (isTRUE(numeric_version(version_numbers(version), strict = FALSE) < floor)) {
      paste0("The Python package ", name, " ", version, " is too old: ", floor, " is needed.")
    }
  }
  problems <- unlist(lapply(rlang::set_names(names(python_floors)), problem_of))
  if (length(problems) > 0 && !x$python$is_ephemeral && !x$python$is_environment) {
    # One environment gets all packages.
    missing <- names(problems)[is.na(x$packages[names(problems)])]
    if (length(missing) > 1) {
      what <- paste("The Python packages", toString(missing), "are not installed.")
      problems <- c(what, problems[setdiff(names(problems), missing)])
    }
    return(list(new_finding(paste(problems, collapse = " "), how_to_install("", x))))
  }
  Map(
    \(problem, name) {
      new_finding(problem, how_to_install(paste0(name, ">=", python_floors[[name]]), x))
    },
    unname(problems),
    names(problems)
  )
}

# The same commands are in the README and in the article on problems.
own_environment <- function(start) {
  is_windows <- .Platform$OS.type == "windows"
  # The terminal of Windows does not know `~`.
  folder <- if (is_windows) path.expand("~/flax") else "~/flax"
  python <- paste0(folder, if (is_windows) "/Scripts/python.exe" else "/bin/python")
  paste0(
    start,
    " create an environment: in a terminal, type `",
    if (is_windows) "py" else "python3",
    " -m venv ",
    folder,
    "` and `",
    python,
    " -m pip install flax jax keras`. Then restart R, and type `Sys.setenv(RETICULATE_PYTHON = \"",
    python,
    "\")` before `library(kerasflax)`. (In a clone of kerasflax, `make setup` creates an ",
    "environment: its Python is `.venv/bin/python`.)"
  )
}

# The leading numbers of a version: "0.9.0.dev1" is 0.9.0.
version_numbers <- function(version) sub("^([0-9]+(\\.[0-9]+)*).*", "\\1", version)

how_to_install <- function(requirement, x) {
  if (!x$python$is_ephemeral && !x$python$is_environment) {
    return(own_environment("R does not install packages into the system's Python. Instead,"))
  }
  if (x$python$is_ephemeral) {
    paste0(
      "Restart R, and type `library(kerasflax)` and `reticulate::py_require(\"",
      requirement,
      "\")` before Python is used."
    )
  } else {
    paste0("Type `reticulate::py_install(\"", requirement, "\")`, and restart R.")
  }
}

backend_finding <- function(x) {
  if (!identical(x$backend$name, "jax")) {
    is_variable <- !is.na(x$variables["KERAS_BACKEND"]) && !x$backend$is_loaded
    new_finding(
      paste0("Keras's backend is \"", x$backend$name, "\"; Flax modules need \"jax\"."),
      if (is_variable) {
        "Type `use_backend(\"jax\")`. (KERAS_BACKEND may be set in ~/.Renviron.)"
      } else {
        paste(
          "Restart R, and type `library(kerasflax)` before Keras is used, without choosing another",
          "backend. (KERAS_BACKEND may be set in ~/.Renviron.)"
        )
      }
    )
  }
}

core_finding <- function(x) {
  if (is.na(x$core) || x$core == "ok") {
    return(NULL)
  }
  installs <- !is.null(x$python$is_ephemeral) && !x$python$is_ephemeral
  new_finding(
    paste("Python cannot import kerasflax's code:", x$core),
    if (installs && !x$python$is_environment) {
      how_to_install("", x)
    } else if (installs) {
      paste(
        "Type `reticulate::py_install(c(\"flax\", \"jax\", \"keras\"), pip_options =",
        "\"--upgrade\")`, and restart R."
      )
    } else {
      "Restart R, and type `library(kerasflax)` before Python is used."
    }
  )
}

device_finding <- function(x) {
  if (!is.null(x$devices_error)) {
    return(new_finding(
      paste("JAX finds no devices:", x$devices_error),
      if (!is.na(x$variables["JAX_PLATFORMS"])) {
        "Restart R, and type `Sys.unsetenv(\"JAX_PLATFORMS\")` before Python is used."
      } else {
        how_to_install("jax", x)
      }
    ))
  }
  has_gpu <- any(x$devices$platform %in% c("gpu", "cuda", "rocm"))
  if (is.null(x$devices) || has_gpu || length(x$machine_gpus) == 0) {
    return(NULL)
  }
  hidden <- x$variables["CUDA_VISIBLE_DEVICES"] %in% c("", "-1")
  is_cpu <- grepl("cpu", x$variables["JAX_PLATFORMS"]) &
    !grepl("cuda|gpu", x$variables["JAX_PLATFORMS"])
  unset <- function(name) {
    paste0("Restart R, and type `Sys.unsetenv(\"", name, "\")` before Python is used.")
  }
  new_finding(
    "The machine has a GPU, and JAX runs on the CPU.",
    if (hidden) {
      paste("CUDA_VISIBLE_DEVICES hides the GPU.", unset("CUDA_VISIBLE_DEVICES"))
    } else if (is_cpu) {
      paste("JAX_PLATFORMS selects the CPU.", unset("JAX_PLATFORMS"))
    } else if (.Platform$OS.type == "windows") {
      "JAX has no GPU support on Windows. Run R in WSL."
    } else if (is.na(x$packages[["jax-cuda-plugin"]])) {
      if (x$python$is_ephemeral) {
        "Restart R, and type `use_backend(\"jax\", gpu = TRUE)` before Python is used."
      } else {
        how_to_install("jax[cuda12]", x)
      }
    } else {
      "Type `reticulate::import(\"jax\")$devices(\"cuda\")`, whose error says why."
    }
  )
}

# Printing ----------------------------------------------------------------------------------------

# Replaces the user's home directory in all texts.
without_home <- function(x) {
  homes <- unique(c(path.expand("~"), Sys.getenv(c("HOME", "USERPROFILE"))))
  homes <- unique(c(homes, normalizePath(homes, mustWork = FALSE)))
  homes <- unique(c(homes, chartr("\\", "/", homes)))
  homes <- homes[nchar(homes) > 1 & homes != "~"]
  shorten <- function(text) {
    for (home in homes[order(-nchar(homes))]) {
      pattern <- paste0("\\Q", home, "\\E(?![[:alnum:]_.-])")
      text[] <- gsub(pattern, "~", text, perl = TRUE)
    }
    text
  }
  rapply(x, shorten, classes = "character", how = "replace")
}

# What keras3 cannot do without TensorFlow. A test calls each of them.
needs_tensorflow <- c(
  "layer_text_vectorization",
  "layer_string_lookup",
  "layer_integer_lookup",
  "layer_hashing",
  "layer_hashed_crossing",
  "callback_tensorboard",
  "image_dataset_from_directory",
  "text_dataset_from_directory",
  "timeseries_dataset_from_array",
  "split_dataset",
  "export_savedmodel"
)

#' @rdname kerasflax_sitrep
#' @export
print.kerasflax_sitrep <- function(x, ...) {
  writeLines(sitrep_lines(x))
  invisible(x)
}

sitrep_lines <- function(x) {
  required <- x$packages[required_packages]
  optional <- x$packages[optional_packages]
  has_python <- is.null(x$python$error)
  rows <- list(
    R = paste0(x$r, ", ", x$os),
    "R packages" = version_text(x$r_packages),
    Python = if (has_python) {
      c(paste(x$python$version, x$python$path), paste("selected by", x$python$source))
    } else {
      paste("none:", x$python$error)
    },
    "Python packages" = if (has_python) version_text(required),
    Optional = if (has_python) version_text(optional),
    Backend = wrap(
      x$backend$name,
      ", chosen by ",
      x$backend$source,
      if (x$backend$is_loaded) "; Keras is loaded" else "; Keras is not loaded yet"
    ),
    Devices = device_text(x),
    "GPUs present" = toString(if (length(x$machine_gpus)) x$machine_gpus else "none from NVIDIA"),
    TensorFlow = if (has_python) tensorflow_text(x$packages[["tensorflow"]]),
    Variables = if (length(x$variables) > 0) {
      paste0(names(x$variables), "=", x$variables)
    } else {
      "none of those that matter is set"
    }
  )
  rows <- Filter(Negate(is.null), rows)
  width <- max(nchar(names(rows)))
  lines <- unlist(Map(
    \(name, text) {
      first <- formatC(name, width = -width)
      paste(c(cli::style_bold(first), rep(strrep(" ", width), length(text) - 1)), text)
    },
    names(rows),
    rows
  ))
  c(
    cli::rule("kerasflax situation report", width = min(80, cli::console_width())),
    unname(lines),
    "",
    finding_lines(x$findings)
  )
}

version_text <- function(versions) {
  is_missing <- is.na(versions)
  text <- toString(paste(names(versions), versions)[!is_missing])
  if (any(is_missing)) {
    text <- paste0(text, "; not installed: ", toString(names(versions)[is_missing]))
  }
  wrap(sub("^; ", "", text))
}

# The width that is left beside the names of the rows.
wrap <- function(...) strwrap(paste0(...), 80 - 16)

device_text <- function(x) {
  if (!is.null(x$devices)) {
    kinds <- ifelse(
      x$devices$kind == x$devices$platform,
      toupper(x$devices$platform),
      paste0(toupper(x$devices$platform), " (", x$devices$kind, ")")
    )
    toString(paste(x$devices$count, "x", kinds))
  } else {
    paste0("unknown", if (!is.null(x$devices_error)) paste0(": ", x$devices_error))
  }
}

tensorflow_text <- function(version) {
  if (is.na(version)) {
    wrap(
      "not installed, and kerasflax does not need it: layers, training, prediction, saving, ",
      "weights and plots work. keras3 needs it for ",
      toString(paste0(needs_tensorflow, "()")),
      "."
    )
  } else {
    paste(version, "(kerasflax does not import it)")
  }
}

finding_lines <- function(findings) {
  if (nrow(findings) == 0) {
    return(paste(cli::col_green(cli::symbol$tick), "No problems found."))
  }
  lines <- function(mark, text) {
    lines <- strwrap(keep_commands(text), 76)
    paste(c(mark, rep(" ", length(lines) - 1)), gsub("\r", " ", lines, fixed = TRUE))
  }
  unlist(Map(
    \(problem, advice) {
      c(
        lines(cli::col_red(cli::symbol$cross), problem),
        lines(cli::col_cyan(cli::symbol$arrow_right), advice)
      )
    },
    findings$problem,
    findings$advice
  ), use.names = FALSE)
}

# Keeps `strwrap()` from breaking a line within backticks, so that commands can be copied.
keep_commands <- function(text) {
  commands <- gregexpr("`[^`]*`", text)
  regmatches(text, commands) <- lapply(regmatches(text, commands), \(x) gsub(" ", "\r", x))
  text
}
