# Trains a model with two inputs and two outputs: an NNX module looks at two handwritten digits with
# the same encoder, and says whether they are the same digit and what they add up to. Each output
# has a loss and a metric of its own.
#
#   Rscript two-inputs-two-outputs.R [folder for the plot]
#
# The data are pairs of the 1797 digits in the Python package scikit-learn, with 8 by 8 gray values
# each. The digits of the pairs to test are not among those to train on.

library(kerasflax)
reticulate::py_require("scikit-learn")
folder <- c(commandArgs(trailingOnly = TRUE), ".")[[1]]
set_random_seed(1)

# The data: pairs, half of them of the same digit ------------------------------------------------

digits <- reticulate::import("sklearn.datasets")$load_digits()
x <- digits$data / 16
y <- as.integer(digits$target)
held_out <- seq_along(y) %% 5 == 0

draw_pairs <- function(n, from) {
  left <- sample(from, n, replace = TRUE)
  right <- sample(from, n, replace = TRUE)
  for (i in which(runif(n) < 0.5)) right[[i]] <- sample(from[y[from] == y[[left[[i]]]]], 1)
  list(
    inputs = list(left = x[left, ], right = x[right, ]),
    outputs = list(same = as.numeric(y[left] == y[right]), sum = y[left] + y[right])
  )
}
train <- draw_pairs(6000, which(!held_out))
test <- draw_pairs(1000, which(held_out))

# The module: one encoder for both inputs, one head for each output ------------------------------

nnx <- reticulate::import("flax.nnx")

pair_net <- flax_module("PairNet",
  units = 64L,
  api = "nnx",
  setup = function(self, rngs) {
    self$encoder <- nnx$Sequential(
      nnx$Linear(64, self$units, rngs = rngs), nnx$relu,
      nnx$Dropout(0.2, rngs = rngs),
      nnx$Linear(self$units, self$units, rngs = rngs), nnx$relu
    )
    self$same <- nnx$Linear(self$units, 1, rngs = rngs)
    self$sum <- nnx$Linear(self$units, 1, rngs = rngs)
  },
  # The names of the arguments are those of the inputs, and the list gives names to the outputs.
  call = function(self, left, right) {
    left <- self$encoder(left)
    right <- self$encoder(right)
    list(
      same = nnx$sigmoid(self$same((left - right)^2)),
      sum = self$sum(left + right)
    )
  }
)

inputs <- list(left = keras_input(64, name = "left"), right = keras_input(64, name = "right"))
outputs <- inputs |> layer_flax_module_wrapper(pair_net(), name = "pair_net")
model <- keras_model(inputs, outputs)
model |> compile(
  optimizer = optimizer_adam(0.003),
  loss = list(same = "binary_crossentropy", sum = "mse"),
  loss_weights = list(same = 1, sum = 0.1),
  metrics = list(same = "accuracy", sum = "mae")
)
model |> fit(train$inputs, train$outputs, batch_size = 64, epochs = 12, verbose = 2)

# The results ------------------------------------------------------------------------------------

scores <- evaluate(model, test$inputs, test$outputs, verbose = 0)
predictions <- predict(model, test$inputs, verbose = 0)

plot_file <- file.path(normalizePath(folder), "two-inputs-two-outputs.png")
png(plot_file, width = 1000, height = 480, res = 110)
par(mfrow = c(2, 4), mar = c(0.5, 0.5, 3, 0.5))
for (i in 1:8) {
  pair <- lapply(test$inputs, \(input) matrix(input[i, ], 8, byrow = TRUE))
  image(
    t(cbind(pair$left, 0, pair$right)[8:1, ]),
    zlim = 0:1, col = gray.colors(17, 1, 0), axes = FALSE, asp = 8 / 17
  )
  title(
    sprintf("same: %.0f %%\nsum: %.1f", 100 * predictions$same[i, 1], predictions$sum[i, 1]),
    font.main = 1, cex.main = 1
  )
}
invisible(dev.off())

majority <- max(mean(test$outputs$same), 1 - mean(test$outputs$same))
mean_error <- mean(abs(test$outputs$sum - mean(train$outputs$sum)))
cat(sprintf(
  paste(
    "\nSame digit: %.1f %% right (always one answer: %.1f %%).",
    "Sum: mean error %.2f (always the mean: %.2f)\n"
  ),
  100 * scores$same_accuracy, 100 * majority, scores$sum_mae, mean_error
))
cat("Plot:", plot_file, "\n")
stopifnot(scores$same_accuracy > majority + 0.2, scores$sum_mae < mean_error / 2)
