# pregate_flags: what every target of ours compiles with.
add_library(pregate_flags INTERFACE)
target_include_directories(pregate_flags INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_features(pregate_flags INTERFACE c_std_11)
target_compile_definitions(pregate_flags INTERFACE _GNU_SOURCE)
target_compile_options(pregate_flags INTERFACE
  $<$<COMPILE_LANGUAGE:C>:-Wall;-Wextra;-Wshadow;-Wconversion;-Wvla;-Wundef;-Wmissing-prototypes;-Wstrict-prototypes>
  $<$<COMPILE_LANG_AND_ID:C,Clang>:-Wthread-safety>
  $<$<AND:$<BOOL:${PREGATE_WERROR}>,$<COMPILE_LANGUAGE:C>>:-Werror>
  $<$<COMPILE_LANGUAGE:C>:-fno-omit-frame-pointer>
  $<$<COMPILE_LANGUAGE:C>:-fmacro-prefix-map=${PROJECT_SOURCE_DIR}/=> # __FILE__ in errors: common/file.c
  "$<$<COMPILE_LANGUAGE:C>:SHELL:-include ${PROJECT_SOURCE_DIR}/common/banned.h>")
target_link_libraries(pregate_flags INTERFACE Threads::Threads)
if(PREGATE_SANITIZE)
  target_compile_options(pregate_flags INTERFACE
    $<$<NOT:$<COMPILE_LANGUAGE:CUDA>>:-fsanitize=${PREGATE_SANITIZE};-fno-sanitize-recover=all>)
  target_link_options(pregate_flags INTERFACE -fsanitize=${PREGATE_SANITIZE})
endif()
if(PREGATE_FUZZ) # everything is instrumented: libFuzzer steers by the branches it sees
  if(NOT CMAKE_C_COMPILER_ID STREQUAL "Clang")
    message(FATAL_ERROR "PREGATE_FUZZ=ON needs clang: use the preset `clang`")
  endif()
  target_compile_options(pregate_flags INTERFACE
    $<$<NOT:$<COMPILE_LANGUAGE:CUDA>>:-fsanitize=fuzzer-no-link,address>)
  target_link_options(pregate_flags INTERFACE -fsanitize=fuzzer-no-link,address)
endif()

# pregate_test(<kind> <module> [WRAP fn ...] [LIBS lib ...] [TIMEOUT s] [ARGS arg ...])
# tests/<kind>/test_<module>.c becomes the ctest <kind>.<module>; exit code 77 means skipped.
function(pregate_test kind module)
  cmake_parse_arguments(T "" "TIMEOUT" "WRAP;LIBS;ARGS" ${ARGN})
  set(target test_${kind}_${module})
  add_executable(${target} ${PROJECT_SOURCE_DIR}/tests/${kind}/test_${module}.c)
  target_link_libraries(${target} PRIVATE pregate_flags ${T_LIBS} PkgConfig::CMOCKA)
  foreach(fn IN LISTS T_WRAP)
    target_link_options(${target} PRIVATE -Wl,--wrap=${fn})
  endforeach()
  if(NOT T_TIMEOUT)
    set(T_TIMEOUT 60)
  endif()
  add_test(NAME ${kind}.${module} COMMAND ${target} ${T_ARGS})
  # Libraries built without tsan (libzmq) look like races of their own threads.
  set_tests_properties(${kind}.${module} PROPERTIES TIMEOUT ${T_TIMEOUT} LABELS ${kind}
    SKIP_RETURN_CODE 77 ENVIRONMENT
    "ASAN_OPTIONS=handle_segv=2;TSAN_OPTIONS=halt_on_error=1 ignore_noninstrumented_modules=1")
endfunction()

# pregate_fuzz(<module> [LIBS lib ...])
# tests/fuzz/fuzz_<module>.c (an LLVMFuzzerTestOneInput) becomes the ctest fuzz.<module>: it replays
# tests/fuzz/corpus/<module>, and with PREGATE_FUZZ=ON also tries new inputs for 20 s. To search for longer:
#   build/clang/tests/fuzz_<module> -max_total_time=600 DIR tests/fuzz/corpus/<module>
function(pregate_fuzz module)
  cmake_parse_arguments(F "" "" "LIBS" ${ARGN})
  set(target fuzz_${module})
  set(found ${CMAKE_CURRENT_BINARY_DIR}/corpus/${module}) # libFuzzer keeps what it finds here
  file(MAKE_DIRECTORY ${found})
  add_executable(${target} ${PROJECT_SOURCE_DIR}/tests/fuzz/fuzz_${module}.c)
  target_link_libraries(${target} PRIVATE pregate_flags ${F_LIBS})
  if(PREGATE_FUZZ)
    target_link_options(${target} PRIVATE -fsanitize=fuzzer)
  else()
    target_sources(${target} PRIVATE ${PROJECT_SOURCE_DIR}/tests/fuzz/replay.c)
  endif()
  add_test(NAME fuzz.${module} COMMAND ${target} -max_total_time=20 -artifact_prefix=${found}-
    ${found} ${PROJECT_SOURCE_DIR}/tests/fuzz/corpus/${module})
  set_tests_properties(fuzz.${module} PROPERTIES TIMEOUT 120 LABELS fuzz)
endfunction()
