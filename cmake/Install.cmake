# SPDX-License-Identifier: Apache-2.0
# What `cmake --install` lays down: the command, one static library per room, their headers under
# include/gmamba/, and a package so that find_package(gmamba) gives gmamba::gmamba.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

# every room in one target: what a program of someone else's links
add_library(gmamba INTERFACE)
add_library(gmamba::gmamba ALIAS gmamba)
target_link_libraries(gmamba INTERFACE gmamba_pipelines gmamba_io gmamba_model gmamba_kernels
                                       gmamba_core)
target_include_directories(gmamba INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>
  $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>
  $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/gmamba>)
target_compile_features(gmamba INTERFACE cxx_std_20)

set(gmamba_rooms core kernels model io pipelines)
set(gmamba_targets gmamba)
foreach(room ${gmamba_rooms})
  set_target_properties(gmamba_${room} PROPERTIES EXPORT_NAME ${room})
  list(APPEND gmamba_targets gmamba_${room})
endforeach()
install(TARGETS ${gmamba_targets} EXPORT gmambaTargets
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
if(TARGET gmamba_command)
  install(TARGETS gmamba_command RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()

foreach(dir kernels libmamba io pipelines)
  install(DIRECTORY ${PROJECT_SOURCE_DIR}/${dir} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/gmamba
    FILES_MATCHING PATTERN "*.h")
endforeach()
install(FILES ${PROJECT_SOURCE_DIR}/gmamba.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/gmamba)
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE ${PROJECT_SOURCE_DIR}/README.md
  DESTINATION ${CMAKE_INSTALL_DOCDIR})

set(gmamba_config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/gmamba)
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/gmambaConfig.cmake.in
  ${PROJECT_BINARY_DIR}/gmambaConfig.cmake INSTALL_DESTINATION ${gmamba_config_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/gmambaConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/gmambaConfig.cmake
              ${PROJECT_BINARY_DIR}/gmambaConfigVersion.cmake DESTINATION ${gmamba_config_dir})
install(EXPORT gmambaTargets NAMESPACE gmamba:: DESTINATION ${gmamba_config_dir})
