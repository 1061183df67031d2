// 3x3 convolutions of channels-last images by Winograd's F(4x4, 3x3): 36 multiplications in place of 144 for each
// 4x4 outputs. A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2015, arXiv:1509.09308.
// Images are (images, height, width, channels), tiles (36, count, channels); both are float32 or both bfloat16, what is
// computed between them is float32.

#include <ATen/Parallel.h>
#include <torch/extension.h>

#include <algorithm>
#include <cstring>
#include <vector>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

using at::Tensor;

constexpr int64_t EDGE = 4, POINTS = 36;              // of a tile: outputs along an edge, transformed values
constexpr int64_t CACHED_BYTES = 12 << 20, ROWS = 512;  // tiles at a time: what stays in cache, enough for a product
constexpr int64_t LANES = 32;  // channels at a time, a cache line in bfloat16; their number is a multiple of it

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

inline Floats load(const float* from) {
  Floats numbers;
  std::memcpy(&numbers, from, sizeof numbers);
  return numbers;
}
inline Floats load(const at::BFloat16* from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  return reinterpret_cast<Floats>(__builtin_convertvector(halves, Words) << 16);
}
inline void store(float* to, Floats numbers) { std::memcpy(to, &numbers, sizeof numbers); }
inline void store(at::BFloat16* to, Floats numbers) {
#ifdef __AVX512BF16__
  __m512 part[2];
  std::memcpy(part, &numbers, sizeof part);
  const auto halves = _mm512_cvtne2ps_pbh(part[1], part[0]);
#else
  const Words bits = reinterpret_cast<Words>(numbers);  // to the nearest, of two to the even one
  const Halves halves = __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, Halves);
#endif
  std::memcpy(to, &halves, sizeof halves);
}

// The values of polynomials at the points 0, a, -a, b, -b and infinity, whose rounding errors in bfloat16 are smaller
// than those of the paper's 0, 1, -1, 2, -2. Even and odd powers are summed apart: they serve a point and its negative.
constexpr float a = 2.f / 3, b = 3.f / 2, a2 = a * a, b2 = b * b;
constexpr float at_a = 1 / (2 * a2 * (a2 - b2)), at_b = 1 / (2 * b2 * (b2 - a2));

inline __attribute__((always_inline)) void at_both(Floats even, Floats odd, Floats* t) {
  t[0] = even + odd;
  t[1] = even - odd;
}

struct InputToTile {
  static constexpr int64_t from = 6, to = 6, before = 1;  // numbers along an edge; pixels before a tile's first output
  static inline __attribute__((always_inline)) void apply(const Floats* v, Floats* t) {
    const Floats even_a = v[4] - b2 * v[2], odd_a = a * v[3] - b * v[1];
    const Floats even_b = v[4] - a2 * v[2], odd_b = b * v[3] - a * v[1];
    t[0] = v[0] - (a2 + b2) * v[2] + v[4];
    at_both(even_a, odd_a, t + 1);
    at_both(even_b, odd_b, t + 3);
    t[5] = v[1] - (a2 + b2) * v[3] + v[5];
  }
};
struct OutputToTile {
  static constexpr int64_t from = 4, to = 6, before = 0;
  static inline __attribute__((always_inline)) void apply(const Floats* v, Floats* t) {
    const Floats even_a = v[0] + a2 * v[2], odd_a = a * v[1] + a * a2 * v[3];
    const Floats even_b = v[0] + b2 * v[2], odd_b = b * v[1] + b * b2 * v[3];
    t[0] = v[0], t[5] = v[3];
    at_both(even_a, odd_a, t + 1);
    at_both(even_b, odd_b, t + 3);
  }
};
struct TileToOutput {
  static constexpr int64_t from = 6, to = 4;
  static inline __attribute__((always_inline)) void apply(const Floats* t, Floats* v) {
    const Floats even_a = t[1] + t[2], odd_a = t[1] - t[2], even_b = t[3] + t[4], odd_b = t[3] - t[4];
    v[0] = t[0] + even_a + even_b;
    v[1] = a * odd_a + b * odd_b;
    v[2] = a2 * even_a + b2 * even_b;
    v[3] = a * a2 * odd_a + b * b2 * odd_b + t[5];
  }
};
struct FilterToTile {  // filters are images of 3x3 pixels, with one tile each
  static constexpr int64_t from = 3, to = 6, before = 0;
  static inline __attribute__((always_inline)) void apply(const Floats* v, Floats* t) {
    const Floats even_a = at_a * (v[0] + a2 * v[2]), odd_a = at_a * a * v[1];
    const Floats even_b = at_b * (v[0] + b2 * v[2]), odd_b = at_b * b * v[1];
    t[0] = v[0], t[5] = v[2];
    at_both(even_a, odd_a, t + 1);
    at_both(even_b, odd_b, t + 3);
  }
};
struct TileToFilter {
  static constexpr int64_t from = 6, to = 3;
  static inline __attribute__((always_inline)) void apply(const Floats* t, Floats* v) {
    const Floats even_a = at_a * (t[1] + t[2]), odd_a = at_a * a * (t[1] - t[2]);
    const Floats even_b = at_b * (t[3] + t[4]), odd_b = at_b * b * (t[3] - t[4]);
    v[0] = t[0] + even_a + even_b;
    v[1] = odd_a + odd_b;
    v[2] = a2 * even_a + b2 * even_b + t[5];
  }
};

// Transforms a patch, pixel by pixel along its rows, along both edges; a pixel is a pointer to its channels.
template <class Step, class From, class To>
void transform(const From* const* from, To* const* to, int64_t channels) {
  for (int64_t c = 0; c < channels; c += LANES) {
    Floats column[Step::from], half[Step::to][Step::from], row[Step::to], values[Step::to];
#pragma GCC unroll 6
    for (int64_t x = 0; x < Step::from; x++) {
#pragma GCC unroll 6
      for (int64_t y = 0; y < Step::from; y++) column[y] = load(from[y * Step::from + x] + c);
      Step::apply(column, row);
#pragma GCC unroll 6
      for (int64_t y = 0; y < Step::to; y++) half[y][x] = row[y];
    }
#pragma GCC unroll 6
    for (int64_t y = 0; y < Step::to; y++) {
      Step::apply(half[y], values);
#pragma GCC unroll 6
      for (int64_t x = 0; x < Step::to; x++) store(to[y * Step::to + x] + c, values[x]);
    }
  }
}

struct Shape {
  int64_t images, height, width, channels;
  int64_t down() const { return (height + EDGE - 1) / EDGE; }
  int64_t across() const { return (width + EDGE - 1) / EDGE; }
  int64_t tiles() const { return images * down() * across(); }
};

// Calls `visit(pixels, points)` for each tile, with pointers into `image`, or to `outside` of it, and into `tiles`.
template <int64_t patch, int64_t before, class Image, class Tile, class Visit>
void each_tile(Image* image, Image* outside, Tile* tiles, const Shape& shape, Visit visit) {
  const int64_t C = shape.channels;
  at::parallel_for(0, shape.images, 1, [&](int64_t first, int64_t last) {
    int64_t tile = first * shape.down() * shape.across();
    for (int64_t n = first; n < last; n++)
      for (int64_t down = 0; down < shape.down(); down++)
        for (int64_t across = 0; across < shape.across(); across++, tile++) {
          Image* pixels[patch * patch];
          Tile* points[POINTS];
          for (int64_t i = 0; i < patch * patch; i++) {
            const int64_t y = down * EDGE - before + i / patch, x = across * EDGE - before + i % patch;
            const bool inside = y >= 0 && y < shape.height && x >= 0 && x < shape.width;
            pixels[i] = inside ? image + ((n * shape.height + y) * shape.width + x) * C : outside;
          }
          for (int64_t i = 0; i < POINTS; i++) points[i] = tiles + (i * shape.tiles() + tile) * C;
          visit(pixels, points);
        }
  });
}

template <class Step, class From, class To>
void image_to_tiles(const From* image, const Shape& shape, To* tiles) {
  const std::vector<From> zeros(shape.channels, From(0));
  each_tile<Step::from, Step::before>(image, zeros.data(), tiles, shape, [&](auto pixels, auto points) {
    transform<Step>(pixels, points, shape.channels);
  });
}

template <class Step, class T>
void tiles_to_image(const T* tiles, const Shape& shape, T* image) {
  std::vector<T> unused(shape.channels);  // written by all threads, read by none
  each_tile<Step::to, 0>(image, unused.data(), tiles, shape, [&](auto pixels, auto points) {
    transform<Step>(points, pixels, shape.channels);
  });
}

Shape shape_of(const Tensor& images) { return {images.size(0), images.size(1), images.size(2), images.size(3)}; }

template <class T>
T* from_image(const Tensor& images, int64_t first) {
  return images.data_ptr<T>() + first * images.stride(0);
}

// Calls `work(first image, input's shape, output's shape, V, M)` for some images at a time; the last two are room for
// their tiles.
template <class T, class Work>
void in_parts(const Tensor& inputs, int64_t filters, Work work) {
  const Shape all = shape_of(inputs);
  const int64_t of_one = all.down() * all.across();
  const int64_t cached = CACHED_BYTES / (POINTS * int64_t{sizeof(T)} * of_one * (all.channels + filters));
  const int64_t part = std::min(all.images, std::max({cached, (ROWS + of_one - 1) / of_one, int64_t{1}}));
  for (int64_t first = 0; first < all.images; first += part) {
    Shape input = all, output = all;
    input.images = output.images = std::min(part, all.images - first);
    output.channels = filters;
    work(first, input, output, at::empty({POINTS, input.tiles(), input.channels}, inputs.options()),
         at::empty({POINTS, input.tiles(), filters}, inputs.options()));
  }
}

// weight (K, 3, 3, C), float32 -> (36, K, C), of the type of `like`
template <class T>
Tensor transformed(const Tensor& weight, const Tensor& like) {
  Tensor tiles = at::empty({POINTS, weight.size(0), weight.size(3)}, like.options());
  image_to_tiles<FilterToTile>(weight.data_ptr<float>(), shape_of(weight), tiles.data_ptr<T>());
  return tiles;
}

// inputs (N, H, W, C), transformed filters (36, C, K) -> (N, H, W, K)
template <class T>
Tensor convolved(const Tensor& inputs, const Tensor& filters) {
  Tensor outputs = at::empty({inputs.size(0), inputs.size(1), inputs.size(2), filters.size(2)}, inputs.options());
  in_parts<T>(inputs, filters.size(2), [&](int64_t first, Shape input, Shape output, Tensor V, Tensor M) {
    image_to_tiles<InputToTile>(from_image<T>(inputs, first), input, V.data_ptr<T>());
    at::bmm_out(M, V, filters);
    tiles_to_image<TileToOutput>(M.data_ptr<T>(), output, from_image<T>(outputs, first));
  });
  return outputs;
}

template <class T>
Tensor filter_gradients_of(const Tensor& inputs, const Tensor& gradients) {
  const int64_t channels = inputs.size(3), filters = gradients.size(3);
  const auto options = inputs.options().dtype(at::kFloat);
  Tensor tiles = at::zeros({POINTS, filters, channels}, options);
  Tensor weight = at::empty({filters, 3, 3, channels}, options);
  in_parts<T>(inputs, filters, [&](int64_t first, Shape input, Shape output, Tensor V, Tensor M) {
    image_to_tiles<InputToTile>(from_image<T>(inputs, first), input, V.data_ptr<T>());
    image_to_tiles<OutputToTile>(from_image<T>(gradients, first), output, M.data_ptr<T>());
    tiles += at::bmm(M.transpose(1, 2), V);
  });
  tiles_to_image<TileToFilter>(tiles.data_ptr<float>(), shape_of(weight), weight.data_ptr<float>());
  return weight;
}

// inputs (N, H, W, C), weight (K, 3, 3, C) -> outputs (N, H, W, K)
Tensor outputs(const Tensor& inputs, const Tensor& weight) {
  return inputs.scalar_type() == at::kFloat
             ? convolved<float>(inputs, transformed<float>(weight, inputs).transpose(1, 2))
             : convolved<at::BFloat16>(inputs, transformed<at::BFloat16>(weight, inputs).transpose(1, 2));
}

// gradients of the outputs (N, H, W, K), weight turned by half a turn (K, 3, 3, C) -> those of the inputs (N, H, W, C)
Tensor input_gradients(const Tensor& gradients, const Tensor& turned) {
  return gradients.scalar_type() == at::kFloat
             ? convolved<float>(gradients, transformed<float>(turned, gradients))
             : convolved<at::BFloat16>(gradients, transformed<at::BFloat16>(turned, gradients));
}

// inputs (N, H, W, C), gradients of the outputs (N, H, W, K) -> those of the weight (K, 3, 3, C), float32
Tensor filter_gradients(const Tensor& inputs, const Tensor& gradients) {
  return inputs.scalar_type() == at::kFloat ? filter_gradients_of<float>(inputs, gradients)
                                            : filter_gradients_of<at::BFloat16>(inputs, gradients);
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("outputs", &outputs);
  module.def("input_gradients", &input_gradients);
  module.def("filter_gradients", &filter_gradients);
}
