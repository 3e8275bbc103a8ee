# The conformance table: the behavior of R modules as layers, with one row for each behavior and one
# column for each module system. It corresponds to tests/python/conformance.py, with modules as an R
# user would write them. Each entry is a function, so the names are available without Python. Each
# case defines how plain Flax runs it, and test-conformance.R compares the layer with those numbers.

# One case.
# - `inputs`: the layer's inputs: R or NumPy arrays, in lists and named lists.
# - `arguments`: a function from the inputs, as JAX arrays, and the mode to `apply()`'s arguments.
# - `streams`: the streams that the module uses in training and at inference.
# - `sown`: the collections that the module sows.
# - `plain`: a function from the mode to the module that plain Flax runs.
# - `layer`: additional arguments of the layer.
new_case <- function(
  module,
  inputs,
  arguments = \(inputs, training) list(inputs),
  method = NULL,
  streams = list(training = character(), inference = character()),
  sown = character(),
  plain = \(training) module,
  layer = list()
) {
  structure(as.list(environment()), class = "linen_case")
}

floats <- function(...) array(seq(-1, 1, length.out = prod(...)), c(...))
integers <- function(..., below = 5L) {
  array(seq(0L, by = 7L, length.out = prod(...)) %% below, c(...))
}

with_mode <- function(name, sense = TRUE) {
  \(inputs, training) c(list(inputs), rlang::set_names(list(training == sense), name))
}
spread <- function(inputs, training) inputs

dropout_in_training <- list(training = "dropout", inference = character())

# The types of the fields of a module defined in R.
annotations <- function(...) {
  types <- lapply(list(...), \(type) reticulate::import_builtins()[[type]])
  do.call(reticulate::dict, types)
}

conformance_table <- function() {
  list(
    "dense only" = list(linen = function() new_case(flax_linen()$Dense(3L), floats(4, 2))),

    "a compact method in R" = list(linen = function() {
      nn <- flax_linen()
      Compact(nn$Module) %py_class% {
        `__call__` <- nn$compact(\(self, inputs) {
          x <- nn$tanh((nn$Dense(3L))(inputs))
          nn$softmax((nn$Dense(3L, use_bias = FALSE))(x))
        })
      }
      new_case(Compact(), floats(4, 2))
    }),

    "setup and a method in R" = list(linen = function() {
      nn <- flax_linen()
      SetUp(nn$Module) %py_class% {
        setup <- function(self) {
          self$hidden <- nn$Dense(3L)
          self$out <- nn$Dense(3L)
        }
        `__call__` <- function(self, inputs) self$out(nn$relu(self$hidden(inputs)))
      }
      new_case(SetUp(), floats(4, 2))
    }),

    "whole doubles in the integer fields of Flax's classes" = list(linen = function() {
      nn <- flax_linen()
      new_case(nn$Dense(features = 32), floats(4, 2), plain = \(training) nn$Dense(features = 32L))
    }),

    "whole doubles in submodules created in R" = list(linen = function() {
      nn <- flax_linen()
      net <- function(number) {
        Convolutions(nn$Module) %py_class% {
          `__call__` <- nn$compact(\(self, inputs) {
            x <- (nn$Conv(
              features = number(4),
              kernel_size = number(c(3, 3)),
              strides = number(2)
            ))(inputs)
            (nn$Dense(features = number(3)))(x)
          })
        }
        Convolutions()
      }
      plain <- net(as.integer)
      new_case(net(identity), floats(4, 6, 6, 2), plain = \(training) plain)
    }),

    "whole doubles in the integer fields of R classes" = list(linen = function() {
      nn <- flax_linen()
      Units(nn$Module) %py_class% {
        `__annotations__` <- annotations(units = "int", rate = "float")
        units <- 64L
        rate <- 0.5
        `__call__` <- nn$compact(\(self, inputs) (nn$Dense(self$units))(inputs) * self$rate)
      }
      new_case(Units(units = 3, rate = 2), floats(4, 2), plain = \(training) {
        Units(units = 3L, rate = 2)
      })
    }),

    "dropout" = list(linen = function() {
      nn <- flax_linen()
      Dropout(nn$Module) %py_class% {
        `__call__` <- nn$compact(\(self, inputs, training = FALSE) {
          x <- (nn$Dense(3L))(inputs)
          (nn$Dropout(0.5))(x, deterministic = !training)
        })
      }
      new_case(Dropout(), floats(4, 2), with_mode("training"), streams = dropout_in_training)
    }),

    "streams with custom names" = list(linen = function() {
      nn <- flax_linen()
      random <- reticulate::import("jax.random")
      Streams(nn$Module) %py_class% {
        `__call__` <- nn$compact(\(self, inputs, training = FALSE) {
          x <- (nn$Dense(3L))(inputs) + random$normal(self$make_rng("noise"), shape(3))
          if (training) x * random$uniform(self$make_rng("other"), shape(3)) else x
        })
      }
      new_case(
        Streams(),
        floats(4, 2),
        with_mode("training"),
        streams = list(training = c("noise", "other"), inference = "noise")
      )
    }),

    "batch statistics" = list(linen = function() {
      nn <- flax_linen()
      Normalised(nn$Module) %py_class% {
        `__call__` <- nn$compact(\(self, inputs, training = FALSE) {
          x <- (nn$Dense(3L))(inputs)
          (nn$BatchNorm(momentum = 0.9))(x, use_running_average = !training)
        })
      }
      new_case(Normalised(), floats(4, 2), with_mode("training"))
    }),

    "sown losses" = list(linen = function() {
      nn <- flax_linen()
      Penalised(nn$Module) %py_class% {
        `__call__` <- nn$compact(\(self, inputs) {
          x <- (nn$Dense(3L))(inputs)
          self$sow("losses", "activity", 0.1 * op_sum(x^2))
          self$sow("losses", "size", op_mean(op_abs(x)))
          x
        })
      }
      new_case(Penalised(), floats(4, 2), sown = "losses")
    }),

    "sown intermediates and metrics" = list(linen = function() {
      nn <- flax_linen()
      Sower(nn$Module) %py_class% {
        `__call__` <- nn$compact(\(self, inputs) {
          x <- (nn$Dense(3L))(inputs)
          self$sow("intermediates", "hidden", x)
          self$sow("intermediates", "hidden", 2 * x)
          self$sow("metrics", "sum", op_sum(x), init_fn = \() 0, reduce_fn = \(a, b) a + b)
          x
        })
      }
      new_case(Sower(), floats(4, 2), sown = c("intermediates", "metrics"))
    }),

    "perturbed values" = list(linen = function() {
      nn <- flax_linen()
      Perturbed(nn$Module) %py_class% {
        `__call__` <- nn$compact(\(self, inputs) {
          x <- self$perturb("hidden", (nn$Dense(3L))(inputs))
          nn$tanh(x)
        })
      }
      new_case(Perturbed(), floats(4, 2), sown = "perturbations")
    }),

    "integer tokens" = list(linen = function() {
      nn <- flax_linen()
      Words(nn$Module) %py_class% {
        `__call__` <- nn$compact(\(self, tokens) (nn$Dense(3L))((nn$Embed(5L, 3L))(tokens)))
      }
      new_case(Words(), integers(4, 6))
    }),

    "truth values" = list(linen = function() {
      nn <- flax_linen()
      jnp <- reticulate::import("jax.numpy")
      Chosen(nn$Module) %py_class% {
        `__call__` <- nn$compact(\(self, inputs) {
          stopifnot(reticulate::py_str(inputs$dtype) == "bool")
          scale <- self$param("scale", nn$initializers$ones, shape(3))
          jnp$where(inputs, scale, -2 * scale)
        })
      }
      new_case(Chosen(), integers(4, 3, below = 2L) == 1L)
    }),

    "unconverted half precision" = list(linen = function() {
      nn <- flax_linen()
      half <- reticulate::np_array(floats(4, 2), dtype = "float16")
      new_case(nn$Dense(3L, dtype = "float16"), half, layer = list(autocast = FALSE))
    }),

    "integers and floats in a named list" = list(linen = function() {
      nn <- flax_linen()
      Mixed(nn$Module) %py_class% {
        `__call__` <- nn$compact(\(self, inputs) {
          words <- (nn$Embed(5L, 3L))(inputs$word)
          words + (nn$Dense(3L))(inputs$features)
        })
      }
      new_case(Mixed(), list(word = integers(4), features = floats(4, 2)))
    }),

    "train instead of training" = list(linen = function() {
      nn <- flax_linen()
      Train(nn$Module) %py_class% {
        `__call__` <- nn$compact(\(self, x, train) {
          x <- (nn$Dense(3L))(x)
          x <- (nn$BatchNorm(use_running_average = !train))(x)
          (nn$Dropout(0.5, deterministic = !train))(x)
        })
      }
      new_case(Train(), floats(4, 2), with_mode("train"), streams = dropout_in_training)
    }),

    "is_training instead of training" = list(linen = function() {
      nn <- flax_linen()
      IsTraining(nn$Module) %py_class% {
        setup <- function(self) {
          self$dense <- nn$Dense(3L)
          self$dropout <- nn$Dropout(0.5)
        }
        `__call__` <- function(self, x, is_training) {
          self$dropout(self$dense(x), deterministic = !is_training)
        }
      }
      new_case(IsTraining(), floats(4, 2), with_mode("is_training"), streams = dropout_in_training)
    }),

    "deterministic instead of training" = list(linen = function() {
      nn <- flax_linen()
      Deterministic(nn$Module) %py_class% {
        `__call__` <- nn$compact(\(self, deterministic = TRUE, inputs) {
          (nn$Dropout(0.5))((nn$Dense(3L))(inputs), deterministic = deterministic)
        })
      }
      new_case(
        Deterministic(),
        floats(4, 2),
        \(x, training) list(inputs = x, deterministic = !training),
        streams = dropout_in_training
      )
    }),

    "use_running_average instead of training" = list(linen = function() {
      nn <- flax_linen()
      RunningAverage(nn$Module) %py_class% {
        `__call__` <- nn$compact(\(self, inputs, use_running_average) {
          (nn$BatchNorm())((nn$Dense(3L))(inputs), use_running_average = use_running_average)
        })
      }
      new_case(RunningAverage(), floats(4, 2), with_mode("use_running_average", FALSE))
    }),

    "a mode argument of a Flax class" = list(linen = function() {
      new_case(flax_linen()$BatchNorm(), floats(4, 2), with_mode("use_running_average", FALSE))
    }),

    "a mode field that is NULL" = list(linen = function() {
      nn <- flax_linen()
      FieldMode(nn$Module) %py_class% {
        `__annotations__` <- annotations(train = "bool")
        `__call__` <- nn$compact(\(self, inputs) {
          stopifnot(!is.null(self$train))
          x <- (nn$BatchNorm(use_running_average = !self$train))((nn$Dense(3L))(inputs))
          (nn$Dropout(0.5, deterministic = !self$train))(x)
        })
      }
      new_case(
        FieldMode(train = NULL),
        floats(4, 2),
        streams = dropout_in_training,
        plain = \(training) FieldMode(train = training)
      )
    }),

    "a mode field that is set" = list(linen = function() {
      new_case(flax_linen()$Dropout(0.5, deterministic = TRUE), floats(4, 2))
    }),

    "a first argument with another name" = list(linen = function() {
      nn <- flax_linen()
      Images(nn$Module) %py_class% {
        `__call__` <- nn$compact(\(self, images, scale = 2) scale * (nn$Dense(3L))(images))
      }
      new_case(Images(), floats(4, 5, 2))
    }),

    "a named list spread over arguments" = list(linen = function() {
      nn <- flax_linen()
      Named(nn$Module) %py_class% {
        `__call__` <- nn$compact(\(self, left, right, training = FALSE) {
          x <- (nn$Dense(3L))(left) - (nn$Dense(3L))(right)
          (nn$Dropout(0.5))(x, deterministic = !training)
        })
      }
      new_case(
        Named(),
        list(right = 2 * floats(4, 2), left = floats(4, 2)),
        \(inputs, training) c(inputs, training = training),
        streams = dropout_in_training
      )
    }),

    "a named list for one argument" = list(linen = function() {
      nn <- flax_linen()
      Whole(nn$Module) %py_class% {
        `__call__` <- nn$compact(\(self, inputs) {
          (nn$Dense(3L))(inputs$b[[1]]) * inputs$b[[2]] + inputs$a
        })
      }
      new_case(Whole(), list(b = list(floats(4, 2), floats(4, 3)), a = floats(4, 1)))
    }),

    "a list spread over arguments" = list(linen = function() {
      nn <- flax_linen()
      Listed(nn$Module) %py_class% {
        setup <- function(self) self$dense <- nn$Dense(3L)
        `__call__` <- function(self, left, right) self$dense(left) + right
      }
      new_case(Listed(), list(floats(4, 2), floats(4, 3)), spread)
    }),

    "a list for one argument" = list(linen = function() {
      nn <- flax_linen()
      Pair(nn$Module) %py_class% {
        `__call__` <- nn$compact(\(self, inputs) {
          c(left, right) %<-% inputs
          (nn$Dense(3L))(left) - right
        })
      }
      new_case(Pair(), list(floats(4, 2), floats(4, 3)))
    }),

    "a mask in a named list" = list(linen = function() {
      new_case(
        masked(),
        list(mask = integers(4, 5, below = 2L) == 1L, inputs = floats(4, 5, 2)),
        spread
      )
    }),

    "a method by name" = list(linen = function() {
      new_case(coder(), floats(4, 2), method = "encode")
    }),

    "an R function as method" = list(linen = function() {
      twice <- function(module, x, training = FALSE) {
        module$decode(module$encode(x), scale = if (training) 2 else 3)
      }
      new_case(coder(), floats(4, 2), with_mode("training"), method = twice)
    }),

    "an R function that unpacks the inputs" = list(linen = function() {
      difference <- function(module, inputs) {
        c(left, right) %<-% inputs
        module(left) - module(right)
      }
      new_case(coder(), list(floats(4, 2), 2 * floats(4, 2)), method = difference)
    }),

    "a cache that counts calls" = list(linen = function() {
      nn <- flax_linen()
      jnp <- reticulate::import("jax.numpy")
      Cached(nn$Module) %py_class% {
        `__call__` <- nn$compact(\(self, inputs) {
          calls <- self$variable("cache", "calls", jnp$zeros, shape(), "int32")
          last <- self$variable("cache", "last", \() 0 * op_mean(inputs))
          if (!self$is_initializing()) {
            calls$value <- calls$value + 1L
            last$value <- op_mean(inputs)
          }
          (nn$Dense(3L))(inputs) + calls$value
        })
      }
      new_case(Cached(), floats(4, 2))
    }),

    "scalars, truth values and keys in custom collections" = list(linen = function() {
      nn <- flax_linen()
      random <- reticulate::import("jax.random")
      jnp <- reticulate::import("jax.numpy")
      Counter(nn$Module) %py_class% {
        `__call__` <- nn$compact(\(self, inputs) {
          count <- self$variable("counts", "n", \() 0L)
          rate <- self$variable("rates", "r", \() 0.5)
          flag <- self$variable("flags", "seen", jnp$zeros, shape(), "bool")
          key <- self$variable("random", "key", \() random$key(3L))
          x <- (nn$Dense(3L))(inputs)
          if (!self$is_initializing()) {
            keys <- random$split(key$value)
            count$value <- count$value + 1L
            rate$value <- rate$value * 0.5
            flag$value <- jnp$ones(shape(), "bool")
            key$value <- reticulate::py_get_item(keys, 0L)
            x <- x + random$normal(reticulate::py_get_item(keys, 1L), shape(3))
          }
          x * rate$value + count$value
        })
      }
      new_case(Counter(), floats(4, 2))
    }),

    "no variables" = list(linen = function() {
      nn <- flax_linen()
      Stateless(nn$Module) %py_class% {
        `__call__` <- function(self, inputs) nn$relu(inputs) - 0.5
      }
      new_case(Stateless(), floats(4, 2))
    }),

    "state without params" = list(linen = function() {
      nn <- flax_linen()
      StateOnly(nn$Module) %py_class% {
        `__call__` <- nn$compact(\(self, inputs, training = FALSE) {
          (nn$BatchNorm(use_bias = FALSE, use_scale = FALSE))(
            inputs,
            use_running_average = !training
          )
        })
      }
      new_case(StateOnly(), floats(4, 2), with_mode("training"))
    }),

    "a list of outputs" = list(linen = function() {
      nn <- flax_linen()
      Lists(nn$Module) %py_class% {
        `__call__` <- nn$compact(\(self, inputs) {
          x <- (nn$Dense(3L))(inputs)
          list(x, op_mean(x, axis = -1) + op_mean(inputs))
        })
      }
      new_case(Lists(), floats(4, 2))
    }),

    "a named list of outputs" = list(linen = function() {
      nn <- flax_linen()
      Names(nn$Module) %py_class% {
        `__call__` <- nn$compact(\(self, inputs) {
          x <- (nn$Dense(3L))(inputs)
          list(z = x, a = (nn$Dense(3L))(x), m = op_argmax(x, axis = -1))
        })
      }
      new_case(Names(), floats(4, 2))
    }),

    "nested outputs with NULL" = list(linen = function() {
      nn <- flax_linen()
      Nested(nn$Module) %py_class% {
        `__call__` <- nn$compact(\(self, inputs) {
          x <- (nn$Dense(3L))(inputs)
          list(z = list(x, NULL, list(a = 2 * x)), none = NULL, a = -x)
        })
      }
      new_case(Nested(), floats(4, 2))
    }),

    "boxes of metadata" = list(linen = function() {
      nn <- flax_linen()
      Partitioned(nn$Module) %py_class% {
        `__call__` <- nn$compact(\(self, inputs) {
          split <- nn$with_partitioning(
            nn$initializers$lecun_normal(),
            reticulate::tuple(NULL, "model")
          )
          logical <- nn$with_logical_partitioning(
            nn$initializers$ones,
            reticulate::tuple("embed", "mlp")
          )
          x <- (nn$Dense(3L, kernel_init = split))(inputs)
          (nn$Dense(3L, kernel_init = logical))(x)
        })
      }
      new_case(Partitioned(), floats(4, 2))
    }),

    "remat" = list(linen = function() {
      nn <- flax_linen()
      Block(nn$Module) %py_class% {
        `__call__` <- nn$compact(\(self, x) nn$tanh((nn$Dense(3L))(x)))
      }
      Remat(nn$Module) %py_class% {
        `__call__` <- nn$compact(\(self, inputs) {
          x <- (nn$remat(Block))()(inputs)
          (nn$remat(nn$Dense))(3L)(x)
        })
      }
      # Lifted transforms take a key from every stream that they get.
      new_case(Remat(), floats(4, 2), streams = dropout_in_training)
    }),

    "scan" = list(linen = function() {
      nn <- flax_linen()
      Step(nn$Module) %py_class% {
        `__annotations__` <- annotations(training = "bool")
        training <- FALSE
        `__call__` <- nn$compact(\(self, carry, x) {
          h <- nn$tanh((nn$Dense(3L))(carry))
          h <- (nn$Dropout(0.5))(h, deterministic = !self$training)
          self$sow("intermediates", "h", h)
          reticulate::tuple((nn$BatchNorm())(h, use_running_average = !self$training), NULL)
        })
      }
      Scanned(nn$Module) %py_class% {
        `__call__` <- nn$compact(\(self, inputs, training = FALSE) {
          layers <- nn$scan(
            Step,
            variable_axes = list(params = 0L, batch_stats = 0L, intermediates = 0L),
            split_rngs = list(params = TRUE, dropout = TRUE),
            length = 2L
          )
          layers(training = training, name = "layers")(inputs, NULL)[[1]]
        })
      }
      new_case(
        Scanned(),
        floats(4, 3),
        with_mode("training"),
        streams = dropout_in_training,
        sown = "intermediates"
      )
    }),

    "vmap of an R class and a Flax class" = list(linen = function() {
      nn <- flax_linen()
      Member(nn$Module) %py_class% {
        `__call__` <- nn$compact(\(self, x) nn$tanh((nn$Dense(3L))(x)))
      }
      Ensemble(nn$Module) %py_class% {
        `__call__` <- nn$compact(\(self, inputs) {
          mapped <- function(class, in_axes) {
            nn$vmap(
              class,
              in_axes = in_axes,
              variable_axes = list(params = 0L),
              split_rngs = list(params = TRUE),
              axis_size = 2L
            )
          }
          x <- mapped(Member, NULL)()(inputs)
          x <- mapped(nn$Dense, 0L)(3L)(x)
          op_mean(x, axis = 1)
        })
      }
      new_case(Ensemble(), floats(4, 2))
    }),

    "a submodule that is called twice" = list(linen = function() {
      nn <- flax_linen()
      Shared(nn$Module) %py_class% {
        `__call__` <- nn$compact(\(self, inputs) {
          dense <- nn$Dense(3L)
          dense(nn$tanh(dense(inputs)))
        })
      }
      new_case(Shared(), floats(4, 3))
    }),

    "a submodule as a field" = list(linen = function() {
      nn <- flax_linen()
      Inner(nn$Module) %py_class% {
        `__call__` <- nn$compact(\(self, x) nn$tanh((nn$Dense(3L))(x)))
      }
      Parts(nn$Module) %py_class% {
        `__annotations__` <- reticulate::dict(first = nn$Module, second = nn$Module)
        `__call__` <- nn$compact(\(self, inputs) {
          (nn$Dense(3L, name = "last"))(self$second(self$first(inputs)))
        })
      }
      new_case(Parts(first = Inner(), second = nn$Dense(3L)), floats(4, 2))
    }),

    "tied embeddings" = list(linen = function() {
      nn <- flax_linen()
      Tied(nn$Module) %py_class% {
        setup <- function(self) {
          self$embed <- nn$Embed(5L, 3L)
          self$dense <- nn$Dense(3L)
        }
        `__call__` <- function(self, tokens) self$embed$attend(self$dense(self$embed(tokens)))
      }
      new_case(Tied(), integers(4, 6))
    }),

    "nested modules" = list(linen = function() {
      nn <- flax_linen()
      Block(nn$Module) %py_class% {
        `__annotations__` <- annotations(units = "int")
        `__call__` <- nn$compact(\(self, x, training) {
          x <- (nn$Dense(self$units))(x)
          (nn$Dropout(0.5))((nn$LayerNorm())(x), deterministic = !training)
        })
      }
      Outer(nn$Module) %py_class% {
        setup <- function(self) self$blocks <- list(Block(units = 3L), Block(units = 3L))
        `__call__` <- function(self, inputs, training = FALSE) {
          for (block in self$blocks) {
            inputs <- block(inputs, training = training)
          }
          inputs
        }
      }
      new_case(Outer(), floats(4, 2), with_mode("training"), streams = dropout_in_training)
    }),

    "Sequential with modules and functions" = list(linen = function() {
      nn <- flax_linen()
      new_case(nn$Sequential(list(nn$Dense(3L), nn$relu, \(x) 2 * x, nn$Dense(3L))), floats(4, 2))
    })
  )
}

# A module with two methods in R, and a third that calls both.
coder <- function() {
  nn <- flax_linen()
  Coder(nn$Module) %py_class% {
    setup <- function(self) {
      self$encoder <- nn$Dense(3L)
      self$decoder <- nn$Dense(3L)
    }
    encode <- function(self, x) nn$tanh(self$encoder(x))
    decode <- function(self, x, scale = 1) self$decoder(x) * scale
    `__call__` <- function(self, x) self$decode(self$encode(x))
  }
  Coder()
}

# A module that replaces masked values with a number.
masked <- function() {
  nn <- flax_linen()
  jnp <- reticulate::import("jax.numpy")
  Masked(nn$Module) %py_class% {
    `__call__` <- nn$compact(\(self, inputs, mask = NULL) {
      if (!is.null(mask)) {
        inputs <- jnp$where(op_expand_dims(mask, -1), inputs, 7)
      }
      (nn$Dense(3L))(inputs)
    })
  }
  Masked()
}

# Calls `f` with the name and the entry of every case in the table.
for_each_case <- function(f) {
  table <- conformance_table()
  nnx <- nnx_conformance_table()
  for (behaviour in names(nnx)) {
    table[[behaviour]]$nnx <- nnx[[behaviour]]
  }
  for (behaviour in names(table)) {
    for (system in names(table[[behaviour]])) {
      f(paste0(system, ", ", behaviour), table[[behaviour]][[system]])
    }
  }
}

# Plain Flax -------------------------------------------------------------------------------------

conformance_seed <- 3L
learning_rate <- 0.1

plain_init <- function(case) UseMethod("plain_init")

plain_init.linen_case <- function(case) {
  key <- reticulate::import("jax.random")$key(conformance_seed)
  rlang::exec(
    case$plain(FALSE)$init,
    key,
    !!!plain_arguments(case, case$inputs, "inference"),
    method = case$method
  )
}

# The outputs, and all variables that the module writes.
plain_apply <- function(case, variables, inputs, mode, keys) UseMethod("plain_apply")

plain_apply.linen_case <- function(case, variables, inputs, mode, keys) {
  rlang::exec(
    case$plain(mode == "training")$apply,
    variables,
    !!!plain_arguments(case, inputs, mode),
    method = case$method,
    rngs = keys,
    mutable = flax_linen()$DenyList("params")
  ) |>
    rlang::set_names(c("outputs", "written"))
}

plain_arguments <- function(case, inputs, mode) {
  case$arguments(map_tree(inputs, as_jax), mode == "training")
}

# One step of gradient descent. Returns the loss before the step and the variables after it.
plain_step <- function(case, variables, inputs, keys) {
  jax <- reticulate::import("jax")
  loss <- function(params) {
    variables$params <- params
    plain <- plain_apply(case, variables, inputs, "training", keys)
    value <- op_mean(op_square(score(plain$outputs)))
    for (sown in unlist(plain$written$losses)) {
      value <- value + sown
    }
    list(value, plain$written[setdiff(intersect(names(plain$written), names(variables)), "params")])
  }
  has_params <- !is.null(variables$params)
  c(value, state) %<-%
    if (has_params) {
      c(result, gradients) %<-% jax$value_and_grad(loss, has_aux = TRUE)(variables$params)
      variables$params <- jax$tree$map(
        \(param, gradient) param - learning_rate * gradient,
        variables$params,
        gradients
      )
      result
    } else {
      loss(NULL)
    }
  list(loss = numbers(value), variables = utils::modifyList(variables, state))
}

# One number for each example, from outputs of any structure, as arrays or Keras tensors.
score <- function(outputs) {
  parts <- lapply(unname(leaves_of(outputs)), \(x) {
    x <- op_square(op_cast(x, "float32"))
    while (length(x$shape) > 1) {
      x <- op_mean(x, axis = -1)
    }
    op_expand_dims(x, -1)
  })
  Reduce(op_add, parts)
}

# The layer --------------------------------------------------------------------------------------

# The layer of a case, built on inputs with an unknown batch size.
layer_of <- function(case) {
  layer <- rlang::exec(
    layer_flax_module_wrapper,
    module = case$module,
    method = case$method,
    seed = conformance_seed,
    !!!case$layer
  )
  layer(keras_inputs(case$inputs))
  layer
}

# The random keys of the layer's next call.
keys_of <- function(layer, streams) {
  if (length(streams)) {
    reticulate::import("kerasflax._rng")$streams(layer$seed_generator$state$value, as.list(streams))
  }
}

params_of <- function(variables) {
  lapply(reticulate::import("jax.tree_util")$tree_leaves(variables$params), numbers)
}

# Keras tensors that correspond to arrays, with an unknown batch size.
keras_inputs <- function(tree, name = NULL) {
  if (is.list(tree)) {
    names <- names(tree) %||% vector("list", length(tree))
    return(Map(keras_inputs, tree, names) |> rlang::set_names(names(tree)))
  }
  keras_input(batch_shape = c(NA, sizes(tree)[-1]), dtype = dtype_of(as_jax(tree)), name = name)
}

# Trees ------------------------------------------------------------------------------------------

map_tree <- function(tree, f) if (is.list(tree)) lapply(tree, map_tree, f) else f(tree)

# The elements that are neither lists nor NULL, in order, named by their path.
leaves_of <- function(tree, path = "out") {
  if (!is.list(tree)) {
    return(if (!is.null(tree)) rlang::set_names(list(tree), path))
  }
  paths <- paste0(path, "/", names(tree) %||% seq_along(tree))
  do.call(c, c(list(list()), unname(Map(leaves_of, tree, paths))))
}

# Keras does not support NULL in nested structures.
without_null <- function(tree) {
  if (is.list(tree)) lapply(Filter(Negate(is.null), tree), without_null) else tree
}

# The given rows of every array.
rows_of <- function(tree, rows) {
  if (is.list(tree)) {
    lapply(tree, rows_of, rows)
  } else if (is_python_object(tree)) {
    tree$take(rows - 1L, axis = 0L)
  } else {
    array(matrix(tree, nrow(tree))[rows, ], c(length(rows), dim(tree)[-1]))
  }
}

sizes <- function(x) as.integer(unlist(as_jax(x)$shape))
dtype_of <- function(x) reticulate::py_str(x$dtype)

# The numbers of an array or random key, as doubles.
numbers <- function(x) {
  if (!is_python_object(x)) {
    return(as.vector(x, "double"))
  }
  if (grepl("key", dtype_of(x), fixed = TRUE)) {
    x <- reticulate::import("jax.random")$key_data(x)
  }
  as.vector(reticulate::import("numpy")$asarray(x, dtype = "float64"))
}

# Expects two trees of arrays, boxes of metadata and NULL to have the same structure, dtypes, shapes
# and numbers.
expect_same_tree <- function(got, expected, tolerance = 1e-5) {
  tree_util <- reticulate::import("jax.tree_util")
  parts <- function(tree) {
    flat <- tree_util$tree_flatten_with_path(tree)
    paths <- vapply(flat[[1]], \(leaf) tree_util$keystr(leaf[[1]]), "")
    list(
      structure = reticulate::py_str(flat[[2]]),
      leaves = rlang::set_names(lapply(flat[[1]], `[[`, 2), paths)
    )
  }
  got <- parts(got)
  expected <- parts(expected)
  expect_identical(got$structure, expected$structure)
  described <- \(leaf) if (is_python_object(leaf)) list(dtype_of(leaf), sizes(leaf))
  # A Python number that was converted to R has no dtype or shape.
  known <- vapply(expected$leaves, is_python_object, NA)
  expect_identical(lapply(got$leaves[known], described), lapply(expected$leaves[known], described))
  expect_equal(lapply(got$leaves, numbers), lapply(expected$leaves, numbers), tolerance = tolerance)
}
