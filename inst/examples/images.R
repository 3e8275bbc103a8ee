# Classifies images with augmentation: Keras's layers turn and shift the images in `fit()`, in
# front of a Flax module. Compares a model with augmentation and one without, on images that are not
# in the middle of their frames.
#
#   Rscript images.R [folder for the plot]
#
# The data are the 1797 handwritten digits in the Python package scikit-learn, with 8 by 8 gray
# values each.

library(kerasflax)
reticulate::py_require("scikit-learn")
folder <- c(commandArgs(trailingOnly = TRUE), ".")[[1]]
set_random_seed(1)

# The data: all digits are in the middle of the frame, but those to test are shifted -------------

digits <- reticulate::import("sklearn.datasets")$load_digits()
y <- as.integer(digits$target)
held_out <- seq_along(y) %% 5 == 0

# Puts each image into a frame of 10 by 10, `down` and `right` pixels from the middle.
framed <- function(images, down = 0, right = 0) {
  frames <- array(0, c(dim(images)[[1]], 10, 10, 1))
  frames[, 2:9 + down, 2:9 + right, 1] <- images
  frames
}
x_train <- framed(digits$images[!held_out, , ] / 16)
x_test <- framed(digits$images[held_out, , ] / 16)
x_shifted <- framed(digits$images[held_out, , ] / 16, down = 1, right = -1)

# The models: the same Flax module with and without augmentation in front of it ------------------

nn <- reticulate::import("flax.linen")

image_net <- flax_module("ImageNet",
  features = 32L,
  call = function(self, inputs, training = FALSE) {
    x <- nn$relu((nn$Conv(self$features, kernel_size = c(3, 3)))(inputs))
    x <- nn$relu((nn$Conv(self$features, kernel_size = c(3, 3)))(x))
    x <- nn$max_pool(x, c(2, 2), strides = c(2, 2))
    x <- nn$relu((nn$Conv(2 * self$features, kernel_size = c(3, 3)))(x))
    x <- x$reshape(c(dim(x)[[1]], -1L))
    x <- (nn$Dropout(0.3))(x, deterministic = !training)
    (nn$Dense(10))(x)
  }
)

# These layers change images in `fit()` only. In `predict()`, they pass them on.
augment <- keras_model_sequential(name = "augment") |>
  layer_random_rotation(0.03, fill_mode = "constant") |>
  layer_random_translation(0.1, 0.1, fill_mode = "constant")

train_model <- function(augment = identity) {
  input <- keras_input(c(10, 10, 1))
  output <- input |>
    augment() |>
    layer_flax_module_wrapper(image_net(), name = "image_net", seed = 1) |>
    layer_activation_softmax()
  model <- keras_model(input, output)
  model |> compile(
    optimizer = optimizer_adam(0.002),
    loss = "sparse_categorical_crossentropy",
    metrics = "accuracy"
  )
  model |> fit(x_train, y[!held_out], batch_size = 64, epochs = 8, verbose = 0)
  model
}
plain <- train_model()
augmented <- train_model(augment)

# The results ------------------------------------------------------------------------------------

# Called with `training = TRUE`, the layers show what the module sees.
shown <- x_train[1:4, , , , drop = FALSE]
versions <- c(list(shown), lapply(1:5, \(i) as.array(augment(shown, training = TRUE))))
plot_file <- file.path(normalizePath(folder), "images.png")
png(plot_file, width = 900, height = 640, res = 110)
par(mfrow = c(4, 6), mar = c(0.5, 0.5, 1.5, 0.5), oma = c(0, 0, 2, 0))
for (i in 1:4) {
  for (j in seq_along(versions)) {
    shades <- t(versions[[j]][i, 10:1, , 1])
    image(shades, zlim = 0:1, col = gray.colors(17, 1, 0), axes = FALSE, asp = 1)
    if (i == 1) title(if (j == 1) "digit" else "augmented", font.main = 1, cex.main = 1)
  }
}
mtext("What Keras's layers make of four digits", outer = TRUE, line = 0.5)
invisible(dev.off())

accuracy <- function(model, x) evaluate(model, x, y[held_out], verbose = 0)$accuracy
percent <- 100 * data.frame(
  row.names = c("without augmentation", "with augmentation"),
  `in the middle` = c(accuracy(plain, x_test), accuracy(augmented, x_test)),
  shifted = c(accuracy(plain, x_shifted), accuracy(augmented, x_shifted)),
  check.names = FALSE
)
cat("\nAccuracy on", sum(held_out), "held-out digits, in %\n")
print(percent, digits = 3)
cat(sprintf(
  "\nAccuracy on shifted digits: %.1f %% with augmentation, %.1f %% without\n",
  percent$shifted[[2]], percent$shifted[[1]]
))
cat("Plot:", plot_file, "\n")
stopifnot(percent$shifted[[2]] > percent$shifted[[1]] + 15)
