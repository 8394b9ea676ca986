# Installs a finished build to a fresh prefix, then configures, builds and runs the project beside this file.
# Takes BUILD_FOLDER, WORK_FOLDER (replaced) and CXX_COMPILER.
file(REMOVE_RECURSE ${WORK_FOLDER})
function(run)
  execute_process(COMMAND ${ARGV} COMMAND_ERROR_IS_FATAL ANY)
endfunction()
run(${CMAKE_COMMAND} --install ${BUILD_FOLDER} --prefix ${WORK_FOLDER}/prefix)
run(${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR} -B ${WORK_FOLDER}/build -G Ninja
  -D CMAKE_BUILD_TYPE=Release -D CMAKE_CXX_COMPILER=${CXX_COMPILER}
  -D CMAKE_PREFIX_PATH=${WORK_FOLDER}/prefix)
run(${CMAKE_COMMAND} --build ${WORK_FOLDER}/build)
run(${WORK_FOLDER}/build/consumer)
run(${WORK_FOLDER}/prefix/bin/wick --version)
