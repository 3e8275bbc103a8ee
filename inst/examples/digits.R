# Uses a Flax module written in R as a Keras layer: trains it on handwritten digits, evaluates it,
# predicts with it and plots the results.
#
#   Rscript digits.R [folder for the plot]
#
# The data are the 1797 digits in the Python package scikit-learn, with 8 by 8 gray values each.

library(kerasflax)
reticulate::py_require("scikit-learn")
folder <- c(commandArgs(trailingOnly = TRUE), ".")[[1]]
set_random_seed(1)

# The module: convolutions, batch statistics, dropout --------------------------------------------

nn <- reticulate::import("flax.linen")
tuple <- reticulate::tuple

# Use one assignment for each step: Flax numbers the parts of a module in the order of creation, and
# R evaluates a pipe from its end.
DigitNet(nn$Module) %py_class% {
  `__call__` <- nn$compact(\(self, inputs, training = FALSE) {
    block <- \(x, features) {
      x <- (nn$Conv(features, kernel_size = c(3L, 3L)))(x)
      x <- (nn$BatchNorm(momentum = 0.9))(x, use_running_average = !training)
      nn$relu(x)
    }
    x <- block(inputs, 32L)
    x <- block(x, 32L)
    x <- nn$max_pool(x, tuple(2L, 2L), strides = tuple(2L, 2L))
    x <- block(x, 64L)$mean(tuple(1L, 2L))
    x <- (nn$Dropout(0.3))(x, deterministic = !training)
    (nn$Dense(10L))(x)
  })
}

# The data: hold out every fifth digit -----------------------------------------------------------

digits <- reticulate::import("sklearn.datasets")$load_digits()
x <- array(digits$images / 16, c(dim(digits$images), 1))
y <- as.integer(digits$target)
held_out <- seq_along(y) %% 5 == 0

# The model: use the module like any other layer -------------------------------------------------

input <- keras_input(c(8, 8, 1))
output <- input |>
  layer_flax_module_wrapper(DigitNet(), name = "digit_net") |>
  layer_activation_softmax()
model <- keras_model(input, output)

compile(
  model,
  optimizer = optimizer_adam(0.003),
  loss = "sparse_categorical_crossentropy",
  metrics = "accuracy"
)
print(model)

history <- fit(
  model,
  x[!held_out, , , , drop = FALSE],
  y[!held_out],
  validation_data = list(x[held_out, , , , drop = FALSE], y[held_out]),
  batch_size = 64,
  epochs = 15,
  verbose = 1
)

# The results ------------------------------------------------------------------------------------

scores <- evaluate(model, x[held_out, , , , drop = FALSE], y[held_out], verbose = 0)
probabilities <- predict(model, x[held_out, , , , drop = FALSE], verbose = 0)

print(flax_parameters(model))

plot_file <- file.path(normalizePath(folder), "digits.png")
colors <- c(training = "#0072B2", `held out` = "#D55E00")
png(plot_file, width = 1200, height = 520, res = 110)
# The curves at the left, below the same title line as the digits, which are placed row by row.
par(oma = c(0, 0, 2.5, 0))
layout(cbind(1, matrix(2:13, 3, byrow = TRUE)), widths = c(6, 2, 2, 2, 2))
par(mar = c(4.5, 4.5, 1.5, 2), las = 1)
curves <- cbind(history$metrics$accuracy, history$metrics$val_accuracy)
matplot(
  curves,
  type = "l",
  lty = 1,
  lwd = 2,
  col = colors,
  bty = "n",
  xlab = "epoch",
  ylab = "accuracy"
)
legend("bottomright", names(colors), col = colors, lwd = 2, bty = "n")

par(mar = c(1, 0.5, 2, 0.5))
images <- x[held_out, , , 1]
answers <- y[held_out]
for (i in head(order(apply(probabilities, 1, max)), 12)) {
  predicted <- which.max(probabilities[i, ]) - 1
  is_wrong <- predicted != answers[[i]]
  image(t(images[i, 8:1, ]), col = gray.colors(17, 1, 0), axes = FALSE, asp = 1)
  title(
    sprintf(
      "%d (%.0f %%)%s",
      predicted,
      100 * max(probabilities[i, ]),
      if (is_wrong) paste(", is", answers[[i]]) else ""
    ),
    cex.main = 1,
    font.main = 1,
    col.main = if (is_wrong) colors[["held out"]] else "black"
  )
}
# Each title is centered above its part: the curves take 6 of the 14 units of the width.
mtext("Accuracy of a Flax module written in R", outer = TRUE, at = 3 / 14, line = 0.8, cex = 0.8)
mtext("The twelve least certain predictions", outer = TRUE, at = 10 / 14, line = 0.8, cex = 0.8)
invisible(dev.off())

cat(sprintf("\nAccuracy on %d held-out digits: %.1f %%\n", sum(held_out), 100 * scores$accuracy))
cat("Plot:", plot_file, "\n")
# A model that has not learned names one digit in ten.
stopifnot(scores$accuracy > 0.9)
