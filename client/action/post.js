// The action's post step: stops the tunnel and reports its traffic. It never fails a job
// that has finished: a fault is a warning.
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { spawnSync } = require('node:child_process');
const runner = require('./runner');

const STOP_MS = 10_000;

async function post() {
  const folder = runner.state('folder');
  if (folder === '') return;
  const pid = Number(runner.state('pid'));
  const alive = pid > 1 && ours(pid, folder) && await stop(pid);
  if (pid > 1 && !alive) runner.warning(`the tunnel had ended before the job did:\n${log(folder)}`);
  if (runner.state('started') !== '') report(JSON.parse(runner.state('started')), readReport(folder));
  fs.rmSync(folder, { recursive: true, force: true });
}

// ours reports whether the process is still the one that main started, because another
// process may have its number now. The command line contains the folder of this step. The
// ps of BusyBox cannot show a single process, so ours reads /proc where it exists.
function ours(pid, folder) {
  if (!fs.existsSync('/proc/self/cmdline')) {
    return (spawnSync('ps', ['-ww', '-o', 'args=', '-p', String(pid)], { encoding: 'utf8' }).stdout || '').includes(folder);
  }
  try {
    return fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(folder);
  } catch {
    return false;
  }
}

// stop ends the program and reports whether it was still running.
async function stop(pid) {
  if (!signal(pid, 'SIGTERM')) return false;
  for (const end = Date.now() + STOP_MS; Date.now() < end;) {
    if (!signal(pid, 0)) return true;
    await new Promise((resolve) => { setTimeout(resolve, 50); });
  }
  signal(pid, 'SIGKILL');
  runner.warning(`the tunnel did not stop within ${STOP_MS / 1000} s and was killed`);
  return true;
}

function signal(pid, name) {
  try {
    return process.kill(pid, name);
  } catch {
    return false;
  }
}

function log(folder) {
  try {
    return fs.readFileSync(path.join(folder, 'mayfly.log'), 'utf8').slice(-4000);
  } catch {
    return '';
  }
}

function readReport(folder) {
  try {
    return JSON.parse(fs.readFileSync(path.join(folder, 'report.json'), 'utf8'));
  } catch {
    return null;
  }
}

function report(started, counted) {
  const repository = process.env.GITHUB_REPOSITORY;
  const rows = [
    ['who', repository ? `${repository}, ${started.identity}` : started.identity],
    ['rule', started.rule],
    ['serial', started.serial],
    ['engine', started.engine],
  ];
  if (counted) {
    rows.push(['certificates', counted.certificates], ['connections', counted.connections],
      ['bytes sent', size(counted.bytes_out)], ['bytes received', size(counted.bytes_in)],
      ['time to wake', counted.wake_ms > 0 ? `${(counted.wake_ms / 1000).toFixed(1)} s` : undefined],
      ['ended by', counted.reason === 'stopped' ? 'the end of the job' : counted.reason]);
  }
  const told = rows.filter(([, value]) => value !== undefined && value !== '');
  for (const [name, value] of told) runner.info(`${name}: ${value}`);
  runner.summary(['### mayfly', '', '| | |', '|---|---|', ...told.map(([name, value]) => `| ${name} | ${runner.cell(value)} |`), ''].join('\n'));
}

// size formats a count of bytes for people.
function size(n) {
  if (!(n >= 1000)) return n === undefined ? undefined : `${n} B`;
  const units = ['kB', 'MB', 'GB', 'TB'];
  let value = n / 1000;
  while (value >= 1000 && units.length > 1) {
    value /= 1000;
    units.shift();
  }
  return `${value.toFixed(1)} ${units[0]}`;
}

post().catch((err) => runner.warning(`post step: ${err.message}`));
