# Runs R code that prints, or returns, the report of a new session.
report_of <- function(code = "kerasflax_sitrep()", env = character()) {
  run_r(c("suppressMessages(library(kerasflax))", code), env = env)
}

# A Python of its own, with the metadata of packages but without the packages.
local_python <- function(versions, env = parent.frame()) {
  folder <- withr::local_tempdir(.local_envir = env)
  python <- Sys.getenv("RETICULATE_PYTHON")
  system2(python, c("-m", "venv", "--without-pip", shQuote(folder)))
  site <- Sys.glob(file.path(folder, "lib", "python3*", "site-packages"))
  for (name in names(versions)) {
    info <- file.path(site, sprintf("%s-%s.dist-info", name, versions[[name]]))
    dir.create(info)
    lines <- c("Metadata-Version: 2.1", paste("Name:", name), paste("Version:", versions[[name]]))
    writeLines(lines, file.path(info, "METADATA"))
  }
  file.path(folder, "bin", "python")
}

# A folder with a program `nvidia-smi` that lists a GPU.
local_gpu <- function(env = parent.frame()) {
  folder <- withr::local_tempdir(.local_envir = env)
  program <- file.path(folder, "nvidia-smi")
  writeLines(c("#!/bin/sh", "echo 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1234)'"), program)
  Sys.chmod(program, "755")
  c(PATH = paste(folder, Sys.getenv("PATH"), sep = ":"))
}

test_that("the report has the versions that Python and R state, and finds no problem here", {
  skip_without_flax()
  report <- result_of(
    "suppressMessages(library(kerasflax)); result <- kerasflax_sitrep()"
  )
  expect_s3_class(report, "kerasflax_sitrep")
  script <- "import flax, jax, jaxlib, keras, numpy
for package in flax, jax, jaxlib, keras, numpy: print(package.__version__)"
  python <- Sys.getenv("RETICULATE_PYTHON")
  stated <- system2(python, "-", input = script, stdout = TRUE)
  expect_identical(unname(report$packages[c("flax", "jax", "jaxlib", "keras", "numpy")]), stated)
  expect_identical(
    report$r_packages[["reticulate"]],
    as.character(utils::packageVersion("reticulate"))
  )
  expect_identical(report$r, as.character(getRversion()))
  expect_identical(report$core, "ok")
  expect_identical(nrow(report$findings), 0L)
  printed <- cli::ansi_strip(capture.output(print(report)))
  for (fact in c(stated, "selected by RETICULATE_PYTHON", "No problems found.")) {
    expect_true(any(grepl(fact, printed, fixed = TRUE)), info = fact)
  }
})

test_that("the devices are those that JAX has, with their number", {
  skip_without_flax()
  report <- result_of(c(
    "Sys.setenv(XLA_FLAGS = '--xla_force_host_platform_device_count=3', JAX_PLATFORMS = 'cpu')",
    "suppressMessages(library(kerasflax)); result <- kerasflax_sitrep()"
  ))
  expect_identical(report$devices$platform, "cpu")
  expect_identical(report$devices$count, 3L)
  expect_match(report$variables[["XLA_FLAGS"]], "device_count=3", fixed = TRUE)
})

test_that("without Python, the report says so and what to type, and does not fail", {
  skip_on_cran()
  printed <- report_of(
    "x <- kerasflax_sitrep(); cat('\nafter', nrow(x$findings), is.na(x$packages[['jax']]), '\n')",
    env = c(RETICULATE_PYTHON = "/no/such/python")
  )
  expect_match(printed, "none: ", fixed = TRUE)
  expect_match(printed, "Python did not start", fixed = TRUE)
  expect_match(printed, "`Sys.unsetenv(\"RETICULATE_PYTHON\")`", fixed = TRUE)
  expect_match(printed, "after 1 TRUE", fixed = TRUE)
})

# The commands in backticks, in their order.
commands_in <- function(text) gsub("`", "", regmatches(text, gregexpr("`[^`]+`", text))[[1]])

test_that("if Python cannot be installed, the report says how to create an environment", {
  skip_on_cran()
  skip_on_os("windows")
  advice <- sitrep_findings(list(
    python = list(error = "Installation of Python not found"),
    variables = character(),
    core = NA,
    backend = list(name = "jax")
  ))$advice
  expect_identical(
    commands_in(advice),
    c(
      "python3 -m venv ~/flax",
      "~/flax/bin/python -m pip install flax jax keras",
      "Sys.setenv(RETICULATE_PYTHON = \"~/flax/bin/python\")",
      "library(kerasflax)",
      "make setup",
      ".venv/bin/python"
    )
  )
  for (page in c("../../README.md", "../../vignettes-src/troubleshooting.Rmd")) {
    # They are not part of the package.
    lines <- if (file.exists(page)) readLines(page, encoding = "UTF-8")
    for (command in if (!is.null(lines)) commands_in(advice)[1:3]) {
      expect_true(any(trimws(lines) == command), info = paste(page, command))
    }
  }
})

test_that("a Python of the system without Flax is one problem, and the environment solves it", {
  skip_without_flax()
  skip_on_os("windows")
  prefix <- system2(
    Sys.getenv("RETICULATE_PYTHON"),
    c("-c", shQuote("import sys; print(sys.base_prefix)")),
    stdout = TRUE
  )
  python <- file.path(prefix, "bin", "python3")
  has_flax <- system2(python, c("-c", shQuote("import flax")), stderr = FALSE) == 0
  skip_if(has_flax, "The system's Python has Flax")
  report <- result_of(c(
    sprintf("Sys.setenv(RETICULATE_PYTHON = '%s')", python),
    "suppressMessages(library(kerasflax)); result <- kerasflax_sitrep()"
  ))
  expect_false(report$python$is_environment)
  expect_identical(nrow(report$findings), 1L)
  missing <- "The Python packages flax, jax, keras are not installed."
  expect_identical(report$findings$problem, missing)
  expect_identical(commands_in(report$findings$advice)[[1]], "python3 -m venv ~/flax")

  # The commands, in a home directory of their own. Packages are not downloaded, but found.
  home <- withr::local_tempdir()
  withr::local_envvar(HOME = home, PATH = paste0(dirname(python), ":", Sys.getenv("PATH")))
  commands <- commands_in(report$findings$advice)
  expect_identical(system(commands[[1]]), 0L)
  site <- Sys.glob(file.path(home, "flax", "lib", "python3*", "site-packages"))
  mine <- system2(
    Sys.getenv("RETICULATE_PYTHON"),
    c("-c", shQuote("import flax, os; print(os.path.dirname(flax.__path__[0]))")),
    stdout = TRUE
  )
  writeLines(mine, file.path(site, "packages.pth"))
  printed <- run_r(c(commands[3:4], "kerasflax_sitrep()"), env = c(HOME = home))
  expect_match(printed, "No problems found.", fixed = TRUE)
})

test_that("`start_python = FALSE` does not start Python", {
  skip_on_cran()
  printed <- report_of(
    "kerasflax_sitrep(start_python = FALSE); cat('\nstarted', reticulate::py_available(), '\n')"
  )
  expect_match(printed, "Python has not been started", fixed = TRUE)
  expect_match(printed, "started FALSE", fixed = TRUE)
  expect_snapshot(error = TRUE, kerasflax_sitrep(start_python = NA))
})

test_that("missing and old packages are found, each with what to type", {
  skip_without_flax()
  skip_on_os("windows")
  python <- local_python(c(jax = "0.7.0", keras = "3.14.0"))
  printed <- report_of(env = c(RETICULATE_PYTHON = python))
  expect_match(printed, "The Python package flax is not installed.", fixed = TRUE)
  expect_match(printed, "`reticulate::py_install(\"flax>=0.12.6\")`", fixed = TRUE)
  expect_match(printed, "jax 0.7.0 is too old: 0.8.1 is needed", fixed = TRUE)
  expect_match(printed, "`reticulate::py_install(\"jax>=0.8.1\")`", fixed = TRUE)
  expect_no_match(printed, "package keras")
})

test_that("packages that cannot be imported are found", {
  skip_without_flax()
  skip_on_os("windows")
  python <- local_python(c(jax = "0.9.0", flax = "0.12.6", keras = "3.14.0"))
  printed <- report_of(env = c(RETICULATE_PYTHON = python))
  expect_match(printed, "Python cannot import kerasflax's code: .*No module named")
  expect_match(printed, "JAX finds no devices: .*No module named 'jax'")
})

test_that("another backend is found, with who chose it", {
  skip_without_flax()
  printed <- report_of(env = c(KERAS_BACKEND = "numpy"))
  expect_match(printed, "numpy, chosen by KERAS_BACKEND, set before kerasflax", fixed = TRUE)
  expect_match(printed, "Keras's backend is \"numpy\"; Flax modules need \"jax\"", fixed = TRUE)
  expect_match(printed, "Type `use_backend(\"jax\")`", fixed = TRUE)

  printed <- report_of("kerasflax_sitrep(start_python = FALSE)", env = c(KERAS_BACKEND = ""))
  expect_match(printed, "jax, chosen by kerasflax, because no other was chosen", fixed = TRUE)

  printed <- report_of(
    "Sys.setenv(KERAS_BACKEND = 'torch'); kerasflax_sitrep(start_python = FALSE)"
  )
  expect_match(printed, "torch, chosen by KERAS_BACKEND or use_backend(), after", fixed = TRUE)
})

test_that("the advice on another backend is right", {
  skip_without_flax()
  printed <- report_of(
    c(
      "keras3::use_backend('jax')",
      "layer <- layer_flax_module_wrapper(module = reticulate::import('flax.linen')$Dense(2))",
      "cat('\n', unlist(layer(matrix(1, 1, 3))$shape), '\n')"
    ),
    env = c(KERAS_BACKEND = "numpy")
  )
  expect_match(printed, "\n 1 2", fixed = TRUE)
})

test_that("a GPU in the machine that JAX does not use is found, with the reason", {
  skip_without_flax()
  skip_on_os("windows")
  path <- local_gpu()
  printed <- report_of(env = c(path, JAX_PLATFORMS = "cpu"))
  expect_match(printed, "NVIDIA H100 80GB HBM3", fixed = TRUE)
  expect_no_match(printed, "GPU-1234")
  expect_match(printed, "The machine has a GPU, and JAX runs on the CPU.", fixed = TRUE)
  expect_match(printed, "`Sys.unsetenv(\"JAX_PLATFORMS\")`", fixed = TRUE)

  # CUDA_VISIBLE_DEVICES is set, and empty.
  printed <- report_of(
    "Sys.setenv(CUDA_VISIBLE_DEVICES = ''); kerasflax_sitrep()",
    env = c(path, JAX_PLATFORMS = "cpu")
  )
  expect_match(printed, "CUDA_VISIBLE_DEVICES hides the GPU", fixed = TRUE)
})

test_that("the report is plain text without the user's home directory", {
  skip_without_flax()
  skip_on_os("windows")
  home <- withr::local_tempdir()
  python <- file.path(home, "env", "bin", "python")
  system2(Sys.getenv("RETICULATE_PYTHON"), c("-m", "venv", "--without-pip", file.path(home, "env")))
  printed <- report_of(env = c(RETICULATE_PYTHON = python, HOME = home, NO_COLOR = "1"))
  expect_match(printed, "~/env/bin/python", fixed = TRUE)
  expect_no_match(printed, home, fixed = TRUE)
  expect_no_match(printed, "\033", fixed = TRUE)
})

test_that("what the report says of keras3 without TensorFlow is right", {
  skip_without_flax()
  skip_if(reticulate::py_module_available("tensorflow"), "TensorFlow is installed")
  folder <- withr::local_tempdir()
  dir.create(file.path(folder, "a"))
  grDevices::png(file.path(folder, "a", "1.png"))
  plot(1)
  grDevices::dev.off()
  writeLines("text", file.path(folder, "a", "1.txt"))
  model <- keras_model_sequential(2) |> layer_dense(1)
  model |> compile(optimizer = "sgd", loss = "mse")
  x <- matrix(1, 4, 2)
  calls <- list(
    layer_text_vectorization = \() layer_text_vectorization(max_tokens = 9L),
    layer_string_lookup = \() layer_string_lookup(vocabulary = c("a", "b")),
    layer_integer_lookup = \() layer_integer_lookup(vocabulary = 1:2),
    layer_hashing = \() layer_hashing(num_bins = 3L),
    layer_hashed_crossing = \() layer_hashed_crossing(num_bins = 3L),
    callback_tensorboard = \() {
      fit(model, x, x[, 1], verbose = 0, callbacks = callback_tensorboard(folder))
    },
    image_dataset_from_directory = \() image_dataset_from_directory(folder, labels = NULL),
    text_dataset_from_directory = \() text_dataset_from_directory(folder, labels = NULL),
    timeseries_dataset_from_array = \() timeseries_dataset_from_array(x, NULL, 2),
    split_dataset = \() split_dataset(list(x), left_size = 0.5),
    export_savedmodel = \() export_savedmodel(model, file.path(folder, "model"))
  )
  expect_setequal(names(calls), needs_tensorflow)
  for (name in names(calls)) {
    expect_error(calls[[name]](), "tensorflow", ignore.case = TRUE, info = name)
  }
})
