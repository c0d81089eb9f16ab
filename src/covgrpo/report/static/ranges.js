"use strict";
// What an axis shows, where uPlot would choose otherwise.
const ranges = {
  // uPlot shows a flat curve of zeros on an axis from 0 to 100.
  any(plot, low, high) {
    if (low === null || high === null) return [0, 1];
    if (low !== high) return uPlot.rangeNum(low, high, 0.1, true);
    const room = Math.abs(low) / 10;
    return low === 0 ? [0, 1] : [low - room, low + room];
  },
  steps(plot, low, high) {
    if (low === null) return [0, 1];
    return low === high ? [low - 1, high + 1] : [low, high];
  },
  // Steps are whole: 1, 2, 5, 10, 20, 50, ...
  stepTicks: [...Array(9).keys()].flatMap((power) => [1, 2, 5].map((digit) => digit * 10 ** power)),
};
