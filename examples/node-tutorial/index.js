'use strict';
// The tutorial's function. What is made out here is made once per execution environment, in its init phase, and serves
// every invocation that the environment gets: so a function keeps its connections.

class Connection {
  constructor() {
    this.opened = new Date().toISOString();
    this.queries = 0;
  }

  query(name) {
    this.queries += 1;
    return 'Hello, ' + name + '!';
  }
}

const connection = new Connection();
console.log('connection opened');

exports.handler = (event, context, callback) => {
  callback(null, {
    greeting: connection.query(event.name || 'world'),
    connectionOpened: connection.opened,
    queriesOnThisConnection: connection.queries,
    millisecondsLeft: context.getRemainingTimeInMillis(),
  });
};
