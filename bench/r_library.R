# Measures how long attaching takes in one process: keras3, then kerasflax. Prints one line of JSON.
keras3 <- system.time(library(keras3))[["elapsed"]]
kerasflax <- system.time(suppressPackageStartupMessages(library(kerasflax)))[["elapsed"]]
started <- reticulate::py_available()
cat(sprintf(
  '{"keras3_s": %.3f, "kerasflax_s": %.3f, "python_started": %s}\n',
  keras3, kerasflax, tolower(started)
))
