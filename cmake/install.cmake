# Installs the library, its headers, the program, and the package that gives others `wick::wick`.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(wick_package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/wick)

install(TARGETS wick EXPORT wickTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
if(TARGET wick_cli)
  install(TARGETS wick_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
# The concrete back ends stay private: make_backend names them.
install(DIRECTORY wick/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/wick
  FILES_MATCHING PATTERN "*.h"
  PATTERN "backend/cpu" EXCLUDE PATTERN "backend/cuda" EXCLUDE PATTERN "backend/metal" EXCLUDE
  PATTERN "backend/mpi" EXCLUDE)
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})

install(EXPORT wickTargets NAMESPACE wick:: DESTINATION ${wick_package_folder})
configure_package_config_file(cmake/wickConfig.cmake.in ${PROJECT_BINARY_DIR}/wickConfig.cmake
  INSTALL_DESTINATION ${wick_package_folder})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/wickConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/wickConfig.cmake ${PROJECT_BINARY_DIR}/wickConfigVersion.cmake
  DESTINATION ${wick_package_folder})
