# The sources, compilers and libraries of the CUDA back end: kernels by nvcc, the runtime linked
# statically, cuBLASLt dynamically.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES ${WICK_CUDA_ARCHITECTURES})
endif()
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)  # which CMake 3.25 does not know of nvcc
endif()
find_package(CUDAToolkit 12.5 REQUIRED)

file(GLOB wick_cuda_sources CONFIGURE_DEPENDS wick/backend/cuda/*.cpp wick/backend/cuda/*.cu)
list(APPEND wick_sources ${wick_cuda_sources})
set(wick_cuda_libraries CUDA::cudart_static CUDA::cublasLt)
add_compile_options($<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>
  "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall$<COMMA>-Wextra$<COMMA>-Wno-missing-field-initializers>")
list(APPEND wick_registry_flags WICK_CUDA)

# Sums between GPUs; without it they go through host memory.
find_path(NCCL_INCLUDE_FOLDER nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
find_library(NCCL_LIBRARY nccl HINTS ${CUDAToolkit_LIBRARY_DIR})
if(MPI_CXX_FOUND AND NCCL_INCLUDE_FOLDER AND NCCL_LIBRARY)
  list(APPEND wick_registry_flags WICK_NCCL)
  list(APPEND wick_cuda_libraries ${NCCL_LIBRARY})
else()
  list(FILTER wick_sources EXCLUDE REGEX "/nccl_")
endif()
