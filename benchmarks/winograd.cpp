// 3x3 convolutions of channels-last images by Winograd's F(4x4, 3x3): 36 multiplications in place of 144 for each
// 4x4 outputs. A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2015, arXiv:1509.09308.
// Images are (images, height, width, channels), tiles (36, count, channels); both are float32 or both bfloat16, what is
// computed between them is float32.

#include <ATen/Parallel.h>
#include <torch/extension.h>

#include <algorithm>
#include <vector>

using at::Tensor;

constexpr int64_t EDGE = 4, POINTS = 36;              // of a tile: outputs along an edge, transformed values
constexpr int64_t CACHED_BYTES = 12 << 20, ROWS = 512;  // tiles at a time: what stays in cache, enough for a product

// From a patch of the image to a tile: B^T for inputs (6 pixels along an edge), A for outputs (4), G for filters (3). The
// points 0, 2/3, -2/3, 3/2, -3/2 and infinity lose half as many digits in bfloat16 as the paper's 0, 1, -1, 2, -2.
constexpr float a = 2.f / 3, b = 3.f / 2;
constexpr float sum = a * a + b * b, at_a = 1 / (2 * a * a * (a * a - b * b)), at_b = 1 / (2 * b * b * (b * b - a * a));
struct Input {
  static constexpr int64_t patch = 6, before = 1;  // pixels along an edge; those before the tile's first output
  static constexpr float matrix[6][patch] = {{1, 0, -sum, 0, 1, 0},  {0, -b, -b * b, a, 1, 0}, {0, b, -b * b, -a, 1, 0},
                                             {0, -a, -a * a, b, 1, 0}, {0, a, -a * a, -b, 1, 0}, {0, 1, 0, -sum, 0, 1}};
};
struct Output {
  static constexpr int64_t patch = 4, before = 0;
  static constexpr float matrix[6][patch] = {{1, 0, 0, 0},          {1, a, a * a, a * a * a},   {1, -a, a * a, -a * a * a},
                                             {1, b, b * b, b * b * b}, {1, -b, b * b, -b * b * b}, {0, 0, 0, 1}};
};
struct Filter {  // as images of 3x3 pixels, with one tile each
  static constexpr int64_t patch = 3, before = 0;
  static constexpr float matrix[6][patch] = {{1, 0, 0},
                                             {at_a, a * at_a, a * a * at_a},
                                             {at_a, -a * at_a, a * a * at_a},
                                             {at_b, b * at_b, b * b * at_b},
                                             {at_b, -b * at_b, b * b * at_b},
                                             {0, 0, 1}};
};

inline float to_float(float value) { return value; }
inline float to_float(at::BFloat16 value) { return __builtin_bit_cast(float, uint32_t{value.x} << 16); }

template <class T>
T rounded(float value);
template <>
inline float rounded(float value) { return value; }
template <>
inline at::BFloat16 rounded(float value) {  // to the nearest, of two to the even one; torch's is not vectorised
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16), at::BFloat16::from_bits()};
}

template <class Side, bool transposed>
constexpr float entry(int64_t row, int64_t column) {
  return transposed ? Side::matrix[column][row] : Side::matrix[row][column];
}

// The matrix (or its transpose) times vectors of `channels` numbers, `from_step` and `to_step` numbers apart.
template <class Side, bool transposed, class From, class To>
void multiply(const From* from, int64_t from_step, To* to, int64_t to_step, int64_t channels) {
  constexpr int64_t rows = transposed ? Side::patch : 6, columns = transposed ? 6 : Side::patch;
#pragma omp simd
  for (int64_t c = 0; c < channels; c++) {
    float value[columns];
#pragma GCC unroll 6
    for (int64_t j = 0; j < columns; j++) value[j] = to_float(from[j * from_step + c]);
#pragma GCC unroll 6
    for (int64_t i = 0; i < rows; i++) {
      float sum = 0;
#pragma GCC unroll 6
      for (int64_t j = 0; j < columns; j++) sum += entry<Side, transposed>(i, j) * value[j];
      to[i * to_step + c] = rounded<To>(sum);
    }
  }
}

struct Shape {
  int64_t images, height, width, channels;
  int64_t down() const { return (height + EDGE - 1) / EDGE; }
  int64_t across() const { return (width + EDGE - 1) / EDGE; }
  int64_t tiles() const { return images * down() * across(); }
};

// Call `visit(image, y, x, tile, patch, half)` for each tile; the last two are room for a patch and half a transform.
template <class Side, class T, class Visit>
void each_tile(const Shape& shape, Visit visit) {
  at::parallel_for(0, shape.images, 1, [&](int64_t first, int64_t last) {
    std::vector<T> patch(Side::patch * Side::patch * shape.channels);
    std::vector<float> half(6 * Side::patch * shape.channels);
    int64_t tile = first * shape.down() * shape.across();
    for (int64_t image = first; image < last; image++)
      for (int64_t y = 0; y < shape.down(); y++)
        for (int64_t x = 0; x < shape.across(); x++)
          visit(image, y * EDGE - Side::before, x * EDGE - Side::before, tile++, patch.data(), half.data());
  });
}

// Call `pixel(inside, offset in the image, pointer into the patch)` for each pixel of the patch that starts at y, x.
template <class Side, class T, class Pixel>
void each_pixel(const Shape& shape, int64_t image, int64_t y, int64_t x, T* patch, Pixel pixel) {
  for (int64_t i = y; i < y + Side::patch; i++)
    for (int64_t j = x; j < x + Side::patch; j++, patch += shape.channels) {
      bool inside = i >= 0 && i < shape.height && j >= 0 && j < shape.width;
      pixel(inside, ((image * shape.height + i) * shape.width + j) * shape.channels, patch);
    }
}

template <class Side, class From, class To>
void image_to_tiles(const From* image, const Shape& shape, To* tiles) {
  const int64_t C = shape.channels, P = Side::patch, step = shape.tiles() * C;
  each_tile<Side, From>(shape, [&](int64_t n, int64_t y, int64_t x, int64_t tile, From* patch, float* half) {
    each_pixel<Side>(shape, n, y, x, patch, [&](bool inside, int64_t offset, From* pixel) {
      inside ? std::copy_n(image + offset, C, pixel) : std::fill_n(pixel, C, From(0));
    });
    for (int64_t j = 0; j < P; j++) multiply<Side, false>(patch + j * C, P * C, half + j * C, P * C, C);
    for (int64_t i = 0; i < 6; i++) multiply<Side, false>(half + i * P * C, C, tiles + tile * C + i * 6 * step, step, C);
  });
}

// With the transposed matrices, where patches do not overlap.
template <class Side, class T>
void tiles_to_image(const T* tiles, const Shape& shape, T* image) {
  const int64_t C = shape.channels, P = Side::patch, step = shape.tiles() * C;
  each_tile<Side, T>(shape, [&](int64_t n, int64_t y, int64_t x, int64_t tile, T* patch, float* half) {
    for (int64_t i = 0; i < 6; i++) multiply<Side, true>(tiles + tile * C + i * 6 * step, step, half + i * P * C, C, C);
    for (int64_t j = 0; j < P; j++) multiply<Side, true>(half + j * C, P * C, patch + j * C, P * C, C);
    each_pixel<Side>(shape, n, y, x, patch, [&](bool inside, int64_t offset, T* pixel) {
      if (inside) std::copy_n(pixel, C, image + offset);
    });
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
  image_to_tiles<Filter>(weight.data_ptr<float>(), shape_of(weight), tiles.data_ptr<T>());
  return tiles;
}

// inputs (N, H, W, C), transformed filters (36, C, K) -> (N, H, W, K)
template <class T>
Tensor convolved(const Tensor& inputs, const Tensor& filters) {
  Tensor outputs = at::empty({inputs.size(0), inputs.size(1), inputs.size(2), filters.size(2)}, inputs.options());
  in_parts<T>(inputs, filters.size(2), [&](int64_t first, Shape input, Shape output, Tensor V, Tensor M) {
    image_to_tiles<Input>(from_image<T>(inputs, first), input, V.data_ptr<T>());
    at::bmm_out(M, V, filters);
    tiles_to_image<Output>(M.data_ptr<T>(), output, from_image<T>(outputs, first));
  });
  return outputs;
}

template <class T>
Tensor filter_gradients_of(const Tensor& inputs, const Tensor& gradients) {
  const int64_t channels = inputs.size(3), filters = gradients.size(3);
  const auto options = inputs.options().dtype(at::kFloat);
  Tensor tiles = at::zeros({POINTS, filters, channels}, options), weight = at::empty({filters, 3, 3, channels}, options);
  in_parts<T>(inputs, filters, [&](int64_t first, Shape input, Shape output, Tensor V, Tensor M) {
    image_to_tiles<Input>(from_image<T>(inputs, first), input, V.data_ptr<T>());
    image_to_tiles<Output>(from_image<T>(gradients, first), output, M.data_ptr<T>());
    tiles += at::bmm(M.transpose(1, 2), V);
  });
  tiles_to_image<Filter>(tiles.data_ptr<float>(), shape_of(weight), weight.data_ptr<float>());
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
