'use strict';
// Checks an order that came in through an API, and adds it up. A wrong order is the customer's affair and gets a status and
// words; an event that no API sends is ours, so it is thrown, and the platform makes a function error of it.

const Ajv = require('ajv');
const formats = require('ajv-formats');

const order = {
  type: 'object',
  required: ['customer', 'lines'],
  additionalProperties: false,
  properties: {
    customer: { type: 'string', format: 'email' },
    lines: {
      type: 'array',
      minItems: 1,
      items: {
        type: 'object',
        required: ['article', 'pieces', 'cents'],
        additionalProperties: false,
        properties: {
          article: { type: 'string', pattern: '^[A-Z]{2}-[0-9]{4}$' },
          pieces: { type: 'integer', minimum: 1, maximum: 1000 },
          cents: { type: 'integer', minimum: 0 },
        },
      },
    },
  },
};

// Compiled once for each execution environment, not for each order.
const ajv = new Ajv({ allErrors: true });
formats(ajv);
const isOrder = ajv.compile(order);

exports.handler = async (event) => {
  if (typeof event.body !== 'string') {
    throw new TypeError('the event has no body: it does not come from an API');
  }
  let given;
  try {
    given = JSON.parse(event.isBase64Encoded ? Buffer.from(event.body, 'base64').toString() : event.body);
  } catch (error) {
    return answer(400, { message: 'the body is not JSON' });
  }
  if (!isOrder(given)) {
    const wrong = isOrder.errors.map((error) => `${error.instancePath || '/'} ${error.message}`);
    console.log('refused:', wrong.join('; '));
    return answer(422, { message: 'this is not an order', wrong });
  }
  const total = given.lines.reduce((sum, line) => sum + line.pieces * line.cents, 0);
  console.log('accepted:', given.lines.length, 'lines');
  return answer(200, { customer: given.customer, lines: given.lines.length, total: (total / 100).toFixed(2) });
};

function answer(statusCode, body) {
  return { statusCode, headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) };
}
