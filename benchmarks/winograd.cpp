// 3x3 convolutions of channels-last images by Winograd's F(4x4, 3x3): 36 multiplications in place of 144 for each
// 4x4 outputs. A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2015, section 4.3,
// arXiv:1509.09308. Images are (images, height, width, channels); tiles are (36, count, channels).

#include <ATen/Parallel.h>
#include <torch/extension.h>

#include <algorithm>
#include <vector>

using at::Tensor;

constexpr int64_t EDGE = 4, POINTS = 36;              // of a tile: outputs along an edge, transformed values
constexpr int64_t CACHED_BYTES = 12 << 20, ROWS = 512;  // tiles at a time: what stays in cache, enough for a product

// From a patch of the image to a tile: B^T for inputs (6 pixels along an edge), A for gradients of outputs (4).
struct Input {
  static constexpr int64_t patch = 6, before = 1;  // pixels along an edge; those before the tile's first output
  static constexpr float matrix[6][patch] = {{4, 0, -5, 0, 1, 0},  {0, -4, -4, 1, 1, 0}, {0, 4, -4, -1, 1, 0},
                                             {0, -2, -1, 2, 1, 0}, {0, 2, -1, -2, 1, 0}, {0, 4, 0, -5, 0, 1}};
};
struct Output {
  static constexpr int64_t patch = 4, before = 0;
  static constexpr float matrix[6][patch] = {{1, 0, 0, 0},  {1, 1, 1, 1},   {1, -1, 1, -1},
                                             {1, 2, 4, 8}, {1, -2, 4, -8}, {0, 0, 0, 1}};
};

template <class Side, bool transposed>
constexpr float entry(int64_t row, int64_t column) {
  return transposed ? Side::matrix[column][row] : Side::matrix[row][column];
}

// The matrix (or its transpose) times vectors of `channels` numbers, `from_step` and `to_step` numbers apart.
template <class Side, bool transposed>
void multiply(const float* from, int64_t from_step, float* to, int64_t to_step, int64_t channels) {
  constexpr int64_t rows = transposed ? Side::patch : 6, columns = transposed ? 6 : Side::patch;
#pragma omp simd
  for (int64_t c = 0; c < channels; c++) {
    float value[columns];
#pragma GCC unroll 6
    for (int64_t j = 0; j < columns; j++) value[j] = from[j * from_step + c];
#pragma GCC unroll 6
    for (int64_t i = 0; i < rows; i++) {
      float sum = 0;
#pragma GCC unroll 6
      for (int64_t j = 0; j < columns; j++) sum += entry<Side, transposed>(i, j) * value[j];
      to[i * to_step + c] = sum;
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
template <class Side, class Visit>
void each_tile(const Shape& shape, Visit visit) {
  at::parallel_for(0, shape.images, 1, [&](int64_t first, int64_t last) {
    std::vector<float> patch(Side::patch * Side::patch * shape.channels), half(6 * Side::patch * shape.channels);
    int64_t tile = first * shape.down() * shape.across();
    for (int64_t image = first; image < last; image++)
      for (int64_t y = 0; y < shape.down(); y++)
        for (int64_t x = 0; x < shape.across(); x++)
          visit(image, y * EDGE - Side::before, x * EDGE - Side::before, tile++, patch.data(), half.data());
  });
}

// Call `pixel(inside, offset in the image, pointer into the patch)` for each pixel of the patch that starts at y, x.
template <class Side, class Pixel>
void each_pixel(const Shape& shape, int64_t image, int64_t y, int64_t x, float* patch, Pixel pixel) {
  for (int64_t i = y; i < y + Side::patch; i++)
    for (int64_t j = x; j < x + Side::patch; j++, patch += shape.channels) {
      bool inside = i >= 0 && i < shape.height && j >= 0 && j < shape.width;
      pixel(inside, ((image * shape.height + i) * shape.width + j) * shape.channels, patch);
    }
}

template <class Side>
void image_to_tiles(const float* image, const Shape& shape, float* tiles) {
  const int64_t C = shape.channels, P = Side::patch, step = shape.tiles() * C;
  each_tile<Side>(shape, [&](int64_t n, int64_t y, int64_t x, int64_t tile, float* patch, float* half) {
    each_pixel<Side>(shape, n, y, x, patch, [&](bool inside, int64_t offset, float* pixel) {
      inside ? std::copy_n(image + offset, C, pixel) : std::fill_n(pixel, C, 0.f);
    });
    for (int64_t j = 0; j < P; j++) multiply<Side, false>(patch + j * C, P * C, half + j * C, P * C, C);
    for (int64_t i = 0; i < 6; i++) multiply<Side, false>(half + i * P * C, C, tiles + tile * C + i * 6 * step, step, C);
  });
}

// The adjoint of image_to_tiles: patches that overlap are summed onto the image.
template <class Side>
void tiles_to_image(const float* tiles, const Shape& shape, float* image) {
  const int64_t C = shape.channels, P = Side::patch, step = shape.tiles() * C;
  each_tile<Side>(shape, [&](int64_t n, int64_t y, int64_t x, int64_t tile, float* patch, float* half) {
    for (int64_t i = 0; i < 6; i++) multiply<Side, true>(tiles + tile * C + i * 6 * step, step, half + i * P * C, C, C);
    for (int64_t j = 0; j < P; j++) multiply<Side, true>(half + j * C, P * C, patch + j * C, P * C, C);
    each_pixel<Side>(shape, n, y, x, patch, [&](bool inside, int64_t offset, float* pixel) {
      if (inside && P == EDGE) std::copy_n(pixel, C, image + offset);
      if (inside && P > EDGE)
#pragma omp simd
        for (int64_t c = 0; c < C; c++) image[offset + c] += pixel[c];
    });
  });
}

// Calls `work(input, output, V, M)` for some images at a time: their first pixels and shapes, and room for their tiles.
template <class Work>
void in_parts(const Tensor& inputs, int64_t filters, Work work) {
  const Shape all{inputs.size(0), inputs.size(1), inputs.size(2), inputs.size(3)};
  const int64_t of_one = all.down() * all.across();
  const int64_t cached = CACHED_BYTES / (POINTS * 4 * of_one * (all.channels + filters));
  const int64_t part = std::min(all.images, std::max({cached, (ROWS + of_one - 1) / of_one, int64_t{1}}));
  for (int64_t first = 0; first < all.images; first += part) {
    Shape input = all, output = all;
    input.images = output.images = std::min(part, all.images - first);
    output.channels = filters;
    work(first, input, output, at::empty({POINTS, input.tiles(), input.channels}, inputs.options()),
         at::empty({POINTS, input.tiles(), filters}, inputs.options()));
  }
}

float* from_image(const Tensor& images, int64_t first) { return images.data_ptr<float>() + first * images.stride(0); }

// inputs (N, H, W, C), transformed filters (36, C, K) -> outputs (N, H, W, K)
Tensor forward(const Tensor& inputs, const Tensor& filters) {
  Tensor outputs = at::empty({inputs.size(0), inputs.size(1), inputs.size(2), filters.size(2)}, inputs.options());
  in_parts(inputs, filters.size(2), [&](int64_t first, Shape input, Shape output, Tensor V, Tensor M) {
    image_to_tiles<Input>(from_image(inputs, first), input, V.data_ptr<float>());
    at::bmm_out(M, V, filters);
    tiles_to_image<Output>(M.data_ptr<float>(), output, from_image(outputs, first));
  });
  return outputs;
}

// -> gradients of the inputs and of the transformed filters
std::vector<Tensor> backward(const Tensor& gradients, const Tensor& inputs, const Tensor& filters) {
  Tensor of_inputs = at::zeros_like(inputs), of_filters = at::zeros_like(filters);
  in_parts(inputs, filters.size(2), [&](int64_t first, Shape input, Shape output, Tensor V, Tensor M) {
    image_to_tiles<Input>(from_image(inputs, first), input, V.data_ptr<float>());
    image_to_tiles<Output>(from_image(gradients, first), output, M.data_ptr<float>());
    of_filters.baddbmm_(V.transpose(1, 2), M);
    at::bmm_out(V, M, filters.transpose(1, 2));
    tiles_to_image<Input>(V.data_ptr<float>(), input, from_image(of_inputs, first));
  });
  return {of_inputs, of_filters};
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("forward", &forward);
  module.def("backward", &backward);
}
