library(testthat)
library(kerasflax)

test_check("kerasflax")
