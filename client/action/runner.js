// The runner's interface for this action: inputs, outputs, environment, state, masks,
// the step summary. Files and formats:
// https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands
'use strict';

const fs = require('node:fs');
const crypto = require('node:crypto');

// input returns a trimmed input. The runner does not enforce `required`.
function input(name, fallback = '') {
  const value = process.env[`INPUT_${name.replace(/ /g, '_').toUpperCase()}`];
  return value === undefined || value.trim() === '' ? fallback : value.trim();
}

// boolean accepts the booleans of YAML 1.2's core schema.
function boolean(name, fallback) {
  const value = input(name, fallback ? 'true' : 'false');
  if (['true', 'True', 'TRUE'].includes(value)) return true;
  if (['false', 'False', 'FALSE'].includes(value)) return false;
  throw new Error(`input ${name}: "${value}" is neither true nor false`);
}

// append writes NAME=VALUE to one of the runner's files. The delimiter is random, so that
// no value can end its own entry.
function append(file, name, value) {
  const path = process.env[file];
  if (!path) throw new Error(`${file} is not set: this action runs in GitHub Actions (or nektos/act)`);
  const delimiter = `mayfly_${crypto.randomUUID()}`;
  fs.appendFileSync(path, `${name}<<${delimiter}\n${value}\n${delimiter}\n`);
}

const output = (name, value) => append('GITHUB_OUTPUT', name, value);
const exportVariable = (name, value) => append('GITHUB_ENV', name, value);
const saveState = (name, value) => append('GITHUB_STATE', name, value);
const state = (name) => process.env[`STATE_${name}`] || '';

function addPath(dir) {
  const path = process.env.GITHUB_PATH;
  if (!path) throw new Error('GITHUB_PATH is not set');
  fs.appendFileSync(path, `${dir}\n`);
}

// mask hides each line of a secret in the log.
function mask(secret) {
  for (const line of secret.split('\n')) if (line !== '') console.log(`::add-mask::${escape(line)}`);
}

const escape = (s) => s.replace(/%/g, '%25').replace(/\r/g, '%0D').replace(/\n/g, '%0A');
const info = (text) => console.log(plain(text));
const warning = (text) => console.log(`::warning title=mayfly::${escape(plain(text))}`);
const error = (text) => console.log(`::error title=mayfly::${escape(plain(text))}`);

// plain removes text that a terminal or the runner would interpret: control characters,
// and workflow commands (##[command] anywhere, and ::command after nothing but white
// space). All output of the action passes through it.
function plain(text) {
  return String(text)
    // eslint-disable-next-line no-control-regex
    .replace(/[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, '')
    .replace(/^(\s*)::/gm, '$1: :')
    .replace(/##\[/g, '# #[');
}

// cell escapes a text for a Markdown table of the step summary.
function cell(text) {
  return plain(text).replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;')
    .replace(/([\\`*_{}[\]()#+!|~])/g, '\\$1').replace(/\n/g, ' ');
}

// summary appends Markdown to the step's summary, if the runner has one.
function summary(markdown) {
  const path = process.env.GITHUB_STEP_SUMMARY;
  if (path) fs.appendFileSync(path, `${markdown}\n`);
}

module.exports = { input, boolean, output, exportVariable, saveState, state, addPath, mask, info, warning, error, plain, cell, summary };
