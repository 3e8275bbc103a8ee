# Trains a variational autoencoder: a Flax module with two parts, random numbers of its own and a
# loss that it adds itself. Then draws new digits with the decoder alone.
#
#   Rscript vae.R [folder for the plot]
#
# The data are the 1797 handwritten digits in the Python package scikit-learn, with 8 by 8 gray
# values each.

library(kerasflax)
reticulate::py_require("scikit-learn")
folder <- c(commandArgs(trailingOnly = TRUE), ".")[[1]]
set_random_seed(1)

# The data: hold out every fifth digit -----------------------------------------------------------

digits <- reticulate::import("sklearn.datasets")$load_digits()
x <- digits$data / 16
held_out <- seq_len(nrow(x)) %% 5 == 0

# The module -------------------------------------------------------------------------------------

nn <- reticulate::import("flax.linen")
jax <- reticulate::import("jax")

vae <- flax_module("VAE",
  pixels = 64L,
  units = 128L,
  latent = 8L,
  setup = function(self) {
    self$hidden <- nn$Dense(self$units)
    self$mean <- nn$Dense(self$latent)
    self$log_variance <- nn$Dense(self$latent)
    self$decoder <- nn$Sequential(list(nn$Dense(self$units), nn$relu, nn$Dense(self$pixels)))
  },
  call = function(self, inputs, training = FALSE) {
    hidden <- nn$relu(self$hidden(inputs))
    mean <- self$mean(hidden)
    log_variance <- self$log_variance(hidden)
    # What is sown into `losses` is added to the loss of the model: here, the divergence of the code
    # from a standard normal distribution, per digit.
    divergence <- op_sum(exp(log_variance) + mean^2 - 1 - log_variance, axis = -1) / 2
    self$sow("losses", "divergence", op_mean(divergence))
    if (training) {
      # The layer supplies a random stream under each name that a module asks for.
      noise <- jax$random$normal(self$make_rng("noise"), mean$shape)
      mean <- mean + exp(log_variance / 2) * noise
    }
    self$decode(mean)
  },
  decode = function(self, code) nn$sigmoid(self$decoder(code))
)

# The loss of Keras is a mean over pixels, and the divergence is a sum over the code.
reconstruction_loss <- function(y_true, y_pred) 64 * loss_binary_crossentropy(y_true, y_pred)

module <- vae()
encoder_decoder <- layer_flax_module_wrapper(module = module, name = "vae")
input <- keras_input(64)
model <- keras_model(input, encoder_decoder(input))
model |> compile(optimizer = optimizer_adam(0.003), loss = reconstruction_loss)
history <- model |> fit(
  x[!held_out, ], x[!held_out, ],
  validation_data = list(x[held_out, ], x[held_out, ]),
  batch_size = 64, epochs = 100, verbose = 0
)

# The decoder alone: another layer with the same module and the trained weights ------------------

generator <- layer_flax_module_wrapper(
  module = module, method = "decode", variables = flax_variables(encoder_decoder)
)
new_digits <- as.array(generator(matrix(rnorm(24 * 8), 24)))
reconstructed <- predict(model, x[held_out, ], verbose = 0)

# The results ------------------------------------------------------------------------------------

plot_file <- file.path(normalizePath(folder), "vae.png")
png(plot_file, width = 1000, height = 480, res = 110)
par(mfrow = c(4, 12), mar = c(0.3, 0.3, 0.3, 0.3), oma = c(0, 8, 0, 0))
draw <- function(rows) {
  for (i in 1:12) {
    image(t(matrix(rows[i, ], 8, byrow = TRUE)[8:1, ]),
      zlim = 0:1, col = gray.colors(17, 1, 0), axes = FALSE
    )
  }
}
draw(x[held_out, ])
draw(reconstructed)
draw(new_digits)
draw(new_digits[13:24, ])
mtext(c("new", "new", "reconstructed", "held out"), 2, 0.5,
  outer = TRUE, las = 1, at = c(1, 3, 5, 7) / 8, cex = 0.8
)
invisible(dev.off())

explained <- function(y, fitted) 1 - sum((y - fitted)^2) / sum((t(y) - colMeans(x[!held_out, ]))^2)
share <- explained(x[held_out, ], reconstructed)
# A new digit should look like some digit: compare its distance from the nearest one with the
# distance of noise that has the same mean and deviation in each pixel.
nearest <- function(rows) mean(apply(rows, 1, \(row) min(colSums((t(x) - row)^2))))
noise <- matrix(rnorm(24 * 64, colMeans(x), apply(x, 2, sd)), 24, byrow = TRUE)
cat(sprintf("\nLoss on held-out digits: %.1f after the first epoch, %.1f after the last\n",
  history$metrics$val_loss[[1]], tail(history$metrics$val_loss, 1)
))
cat(sprintf(
  paste(
    "Eight numbers explain %.0f %% of the variance of held-out digits (the mean digit: 0 %%).",
    "Squared distance to the nearest digit: %.1f for new digits, %.1f for noise\n"
  ),
  100 * share, nearest(new_digits), nearest(noise)
))
cat("Plot:", plot_file, "\n")
stopifnot(share > 0.5, nearest(new_digits) < nearest(noise) / 2)
